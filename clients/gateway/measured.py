"""A generation as it passes: its tokens are counted and its times taken, and nothing of it is changed."""

from collections.abc import Callable

from clients.completion.generation import Began, Event, Finished, Generation, Token
from clients.completion.request import Request
from clients.events import ChainChanged, PeerLost, Step
from clients.gateway.allowance import User
from clients.gateway.metrics import ModelMetrics

__all__ = ["Measured"]


class Measured:
    """Stands for `inner`, a generation that has just been submitted."""

    def __init__(
        self,
        inner: Generation,
        request: Request,
        *,
        metrics: ModelMetrics,
        user: User,
        entered: float,
        clock: Callable[[], float],
    ) -> None:
        """`entered`: when the user's request came, by `clock`."""
        self._inner = inner
        self._metrics = metrics
        self._user = user
        self._entered = entered
        self._clock = clock
        self._left = set(range(request.choices))
        self._prompt = len(request.prompt)
        self._last: dict[int, float] = {}  # when each choice had its latest token
        self._first: dict[int, float] = {}
        self._tokens: dict[int, int] = {}
        self._failed = self._closed = False
        self.cached = 0  # tokens of the prompt that peers still knew
        user.spend(self._prompt)
        metrics.prompt.inc(self._prompt)
        metrics.running.inc()

    def __aiter__(self) -> "Measured":
        return self

    async def __anext__(self) -> Event:
        try:
            event = await anext(self._inner)
        except StopAsyncIteration:
            raise
        except Exception:
            self._failed = True
            raise
        self._hear(event)
        return event

    def end(self, choice: int) -> None:
        self._inner.end(choice)
        self._done(choice, "stop")

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._metrics.running.dec()
            for choice in list(self._left):
                self._done(choice, "error" if self._failed else "abort")
            self._metrics.whole.observe(self._clock() - self._entered)
        await self._inner.aclose()

    def _hear(self, event: Event) -> None:
        match event:
            case Token():
                self._token(event.choice)
            case Finished():
                self._done(event.choice, event.reason)
            case Began():
                self.cached = event.cached
                self._metrics.queries.inc(self._prompt)
                self._metrics.hits.inc(event.cached)
            case Step():
                self._metrics.step.observe(event.seconds)
            case PeerLost():
                self._metrics.lost.inc()
            case ChainChanged():
                self._metrics.hops.observe(len(event.hops))
                if event.lost:
                    self._metrics.recoveries.inc()
                    self._metrics.recovery.observe(event.seconds)

    def _token(self, choice: int) -> None:
        now = self._clock()
        self._user.spend(1)
        self._metrics.generation.inc()
        if choice in self._last:
            self._metrics.between.observe(now - self._last[choice])
        else:
            self._first[choice] = now
            if len(self._first) == 1:
                self._metrics.first.observe(now - self._entered)
        self._last[choice] = now
        self._tokens[choice] = self._tokens.get(choice, 0) + 1

    def _done(self, choice: int, reason: str) -> None:
        if choice not in self._left:
            return
        self._left.discard(choice)
        self._metrics.ended(reason)
        if self._tokens.get(choice, 0) > 1:
            gaps = self._tokens[choice] - 1
            self._metrics.mean.observe((self._last[choice] - self._first[choice]) / gaps)
