"""Seeing what a client does: what its sessions say, and its tokens as they come."""

import threading
import time
from collections.abc import Callable

from torch import Tensor
from transformers import LogitsProcessor

from clients.events import ChainChanged, Event, PeerLost, Waiting
from swarm.ids import PeerId

__all__ = ["AtToken", "Watch"]


class Watch:
    """An observer that remembers. Events come on the thread of the connection."""

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self.changes: list[ChainChanged] = []
        self.losses: list[PeerLost] = []
        self.waiting = threading.Event()
        self._on_event = on_event

    def hear(self, event: Event) -> None:
        match event:
            case ChainChanged():
                self.changes.append(event)
            case PeerLost():
                self.losses.append(event)
            case Waiting():
                self.waiting.set()
        if self._on_event is not None:
            self._on_event(event)

    @property
    def chain(self) -> tuple[PeerId, ...]:
        """The peers in use, first to last."""
        return tuple(hop.peer for hop in self.changes[-1].hops)

    @property
    def lost(self) -> set[PeerId]:
        """Peers that were replaced in some chain."""
        return {peer for change in self.changes for peer in change.lost}


class AtToken(LogitsProcessor):  # type: ignore[no-untyped-call]
    """Sees every step of a `generate`, also with beams, where there are no streamers. `times`: when outputs came.

    `action` is done once, when the outputs for token number `token` (from 0) have come.
    """

    def __init__(self, token: int | None = None, action: Callable[[], object] | None = None) -> None:
        self.times: list[float] = []
        self._token = token
        self._action = action

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.times.append(time.monotonic())
        if self._action is not None and len(self.times) - 1 == self._token:
            self._action()
        return scores

    def gap_after(self, moment: float) -> float | None:
        """Seconds from `moment` to the next outputs."""
        return next((at - moment for at in self.times if at > moment), None)
