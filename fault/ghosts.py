"""Whom to take for gone although a record says otherwise: records outlive the peers that wrote them.

A peer that failed is believed again when it announces something later than its failure. And the last word of a peer
stands: a directory of which a part has missed a goodbye, or an older record come late, brings nobody back.
"""

from collections.abc import Callable, Iterable

from swarm.ids import PeerId
from swarm.record import PeerRecord
from swarm.sealing import CLOCK_TOLERANCE, MAX_LIFETIME

__all__ = ["Ghosts"]

REMEMBERED = MAX_LIFETIME + CLOCK_TOLERANCE  # s after which all records from before have expired


class Ghosts:
    """`clock` gives Unix time, which records are dated in."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failed: dict[PeerId, float] = {}  # when
        self._last: dict[PeerId, PeerRecord] = {}

    def fail(self, peer: PeerId) -> None:
        self._failed[peer] = self._clock()

    def alive(self, peer: PeerId) -> None:
        """It was heard of, whatever its record says."""
        self._failed.pop(peer, None)

    def last_words(self, records: Iterable[PeerRecord]) -> list[PeerRecord]:
        """`records`, without those that are older than what their peers have said already."""
        now = self._clock()
        # a peer that had to set its clock back is believed again when what it said before has expired
        self._last = {peer: record for peer, record in self._last.items() if record.expires > now}
        fresh = []
        for record in records:
            last = self._last.get(record.peer)
            if last is None or record.issued >= last.issued:
                self._last[record.peer] = record
                fresh.append(record)
        return fresh

    def among(self, records: Iterable[PeerRecord]) -> frozenset[PeerId]:
        """Peers that failed after the last we have heard of them."""
        now = self._clock()
        # a clock that was set back must not make a failure of the past one of the future
        self._failed = {peer: min(at, now) for peer, at in self._failed.items() if now - at < REMEMBERED}
        return frozenset(r.peer for r in records if r.peer in self._failed and r.issued <= self._failed[r.peer])
