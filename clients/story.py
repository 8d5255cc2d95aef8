"""What happens during one answer, told to a terminal as it happens: tokens, the chain in use, peers lost."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from clients.chat import TextStream, Tokenizer
from clients.events import ChainChanged, Event, Excluded, PeerLost, Waiting
from routing.chains import Hop
from swarm.ids import PeerId
from swarm.terminal import plain

__all__ = ["Story", "show_chain"]


def show_chain(hops: tuple[Hop, ...], names: Mapping[PeerId, str]) -> str:
    return " → ".join(f"{plain(names.get(hop.peer) or hop.name or hop.peer[-8:], 24)} {hop.span}" for hop in hops)


class Story(BaseStreamer):
    """A streamer for `generate` (put, end) and an observer of sessions (hear); both may run on threads of their own.

    `text` shows the answer, `notes` everything else. `times`: when each token came, in seconds of the monotonic clock.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text: Console,
        notes: Console,
        *,
        names: Mapping[PeerId, str] | None = None,
        after_token: Callable[[int], None] | None = None,
    ) -> None:
        self.chains: list[tuple[Hop, ...]] = []
        self.times: list[float] = []
        self.tokens: list[int] = []
        self._stream = TextStream(tokenizer)
        self._text = text
        self._notes = notes
        self._names = names or {}
        self._after_token = after_token
        self._prompt_seen = False
        self._in_line = False

    def put(self, value: Tensor) -> None:
        """The prompt first, then one token at a time."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.times.append(time.monotonic())
            self.tokens.append(token)
            new = self._stream.push(token)
            self._text.print(plain_lines(new), end="", markup=False)
            self._in_line = not new.endswith("\n") if new else self._in_line
            if self._after_token is not None:
                self._after_token(len(self.tokens))

    def end(self) -> None:
        self._text.print()
        self._in_line = False

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Ends the line of an answer that breaks off within, so that what is said next has its own."""
        try:
            yield
        finally:
            if self._in_line:
                self.end()

    def hear(self, event: Event) -> None:
        if isinstance(event, PeerLost):
            self.say(f"[red]lost {self.name(event.peer)}[/]", event.reason)
        elif isinstance(event, Excluded):
            self.say(f"[red]left {self.name(event.peer)} out[/]", f"it {event.reason}")
        elif isinstance(event, Waiting):
            self.say("[yellow]waiting[/]", event.reason)
        elif isinstance(event, ChainChanged):
            word = "moved" if event.left else "mended" if self.chains else "chain"
            self.chains.append(event.hops)
            self.say(f"[cyan]{word} in {event.seconds * 1000:.0f} ms[/]", show_chain(event.hops, self._names))

    def say(self, what: str, detail: str) -> None:
        """A line about the swarm; `what` may hold markup, `detail` is shown as it is."""
        if self._in_line:
            self._notes.print()
            self._in_line = False
        self._notes.print(f"[bold]│[/] {what}  ", end="")
        self._notes.print(plain(detail), markup=False)

    def name(self, peer: PeerId) -> str:
        return self._names.get(peer) or peer[-8:]


def plain_lines(text: str) -> str:
    """What a model wrote, without anything that would steer the terminal; line breaks and tabs stay."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
