"""Adapters that peers host, as a gateway serves them: found in what peers announce, and opened by the first request.

Strangers announce what they like, so what is listed and what is open at once has a bound, and an adapter of this
gateway goes before one that peers call the same.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from clients.completion.handle import Handle
from clients.completion.request import Request
from clients.completion.shared import SharedModel
from clients.gateway.served import Served
from routing.hosting import Hosted, find_hosted, held_wholly
from swarm.errors import Busy

__all__ = ["HostedAdapters"]

MOST_OPEN = 8  # of one model that are asked at once, or were lately
MOST_LISTED = 32  # of one model
BUSY_SECONDS = 5.0


class HostedAdapters:
    """Those of one model. An async context manager; used on one event loop."""

    def __init__(
        self,
        served: Served,
        opened: Callable[[str], SharedModel],
        *,
        taken: Collection[str] = (),
        most: int = MOST_OPEN,
    ) -> None:
        """`served`: the model alone. `opened` gives what answers with the adapter of a digest, `most` at once. `taken`:
        names that mean other adapters here."""
        self._most = most
        self._served = served
        self._opened = opened
        self._taken = frozenset(taken)
        self._open: OrderedDict[str, SharedModel] = OrderedDict()  # by digest, the longest unused first
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def model(self) -> str:
        """The name of the model alone."""
        return self._served.name

    def listed(self) -> list[Served]:
        """What peers host for every block of the model now, by name; those that share one, by digest too."""
        whole = held_wholly(self._served.view)[:MOST_LISTED]
        same = Counter(hosted.name for hosted in whole)
        return [
            self._with(hosted, str(hosted) if same[hosted.name] > 1 or hosted.name in self._taken else hosted.name)
            for hosted in whole
        ]

    def get(self, name: str) -> Served:
        """Raises UsageError for an adapter that nobody hosts, or for a name that means several; MissingBlocks where a
        block lacks a host."""
        return self._with(find_hosted(self._served.view, name), name)

    def submit(self, hosted: Hosted, request: Request) -> Handle:
        """As `Completer.submit`. Raises Busy where as many other adapters as can be are being asked."""
        shared = self._open.get(hosted.digest)
        if shared is None:
            self._make_room()
            shared = self._open[hosted.digest] = self._opened(hosted.digest)
        self._open.move_to_end(hosted.digest)
        return shared.submit(request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for digest in list(self._open):
            self._close(digest)
        await asyncio.gather(*self._closing)

    # --- inside ---

    def _with(self, hosted: Hosted, name: str) -> Served:
        return replace(
            self._served,
            name=f"{self._served.name}:{name}",
            adapter=name,
            completer=_Completer(self, hosted),
            aliases=tuple(f"{alias}:{name}" for alias in self._served.aliases),
            hosted=True,
        )

    def _make_room(self) -> None:
        if len(self._open) < self._most:
            return
        idle = next((d for d, shared in self._open.items() if not shared.running and not shared.waiting), None)
        if idle is None:
            raise Busy(f"{self._most} other adapters that peers host are being asked here", BUSY_SECONDS)
        self._close(idle)

    def _close(self, digest: str) -> None:
        """In the background: what peers keep for it is given back."""
        closing = asyncio.create_task(self._open.pop(digest).aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


@dataclass(frozen=True, slots=True)
class _Completer:
    """One of them, opened when it is asked."""

    adapters: HostedAdapters
    hosted: Hosted

    def submit(self, request: Request) -> Handle:
        return self.adapters.submit(self.hosted, request)
