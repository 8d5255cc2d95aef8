"""What is known of one model's peers at one moment: an immutable snapshot of their live records."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from swarm.ids import Digest, PeerId, Span
from swarm.record import PeerRecord, PeerState

__all__ = ["View", "newest", "runs"]

MOST_RATE = 1e12  # rows per second: beyond any machine, and sums of so many peers as you like stay finite


@dataclass(frozen=True)
class View:
    """All live records of one model, one a peer, sorted by peer id; peers that are offline are left out.

    Only ONLINE peers hold blocks; JOINING, DRAINING, PAUSED and STANDBY ones are listed in
    `peers` alone.
    """

    model: Digest
    num_blocks: int
    peers: tuple[PeerRecord, ...]
    taken: float  # Unix time

    @classmethod
    def of(cls, records: Iterable[PeerRecord], *, model: Digest, num_blocks: int, now: float) -> Self:
        """The view at Unix time `now`: records of other models, expired and absurd ones are dropped."""
        live = newest(records, model=model, num_blocks=num_blocks, now=now)
        return cls(model, num_blocks, tuple(r for r in live if r.state is not PeerState.OFFLINE), now)

    def knowing(self, own: PeerRecord) -> "View":
        """The same with `own` in place of what that peer has announced, however old."""
        others = (record for record in self.peers if record.peer != own.peer)
        now = replace(own, issued=self.taken, expires=self.taken + 1.0)
        return View.of((*others, now), model=self.model, num_blocks=self.num_blocks, now=self.taken)

    @cached_property
    def _holders(self) -> tuple[tuple[PeerRecord, ...], ...]:
        held: list[list[PeerRecord]] = [[] for _ in range(self.num_blocks)]
        for record in self.peers:
            if record.state is PeerState.ONLINE:
                for block in record.span:
                    held[block].append(record)
        return tuple(map(tuple, held))

    @cached_property
    def _by_peer(self) -> dict[PeerId, PeerRecord]:
        return {record.peer: record for record in self.peers}

    def get(self, peer: PeerId) -> PeerRecord | None:
        return self._by_peer.get(peer)

    def holders(self, block: int) -> tuple[PeerRecord, ...]:
        """The online peers that hold `block`; none for a block that the model does not have."""
        return self._holders[block] if 0 <= block < self.num_blocks else ()

    def missing(self, blocks: Span) -> tuple[int, ...]:
        """Those of `blocks` that no online peer holds."""
        return tuple(block for block in blocks if not self.holders(block))

    def replication(self) -> tuple[int, ...]:
        """How many online peers hold each block."""
        return tuple(map(len, self._holders))


def newest(records: Iterable[PeerRecord], *, model: Digest, num_blocks: int, now: float) -> tuple[PeerRecord, ...]:
    """The last word of each peer about this model, offline ones included, sorted by peer id."""
    last: dict[PeerId, PeerRecord] = {}
    for record in records:
        if record.model != model or record.expires <= now:
            continue
        known = last.get(record.peer)
        if known is None or record.issued > known.issued:
            last[record.peer] = record
    return tuple(last[peer] for peer in sorted(last) if _is_sane(last[peer], num_blocks))


def _is_sane(record: PeerRecord, num_blocks: int) -> bool:
    """A signature proves who wrote a record, not that its figures make sense."""
    rates = (record.throughput, record.prefill)
    return (
        record.num_blocks == num_blocks
        and record.span.end <= num_blocks
        and record.queue >= 0
        and all(0 < rate <= MOST_RATE for rate in rates)
    )


def runs(blocks: Iterable[int]) -> tuple[Span, ...]:
    """Ascending block numbers as the fewest spans: 3, 4, 5, 9 gives 3:6 and 9:10."""
    spans: list[Span] = []
    for block in blocks:
        if spans and spans[-1].end == block:
            spans[-1] = Span(spans[-1].start, block + 1)
        else:
            spans.append(Span(block, block + 1))
    return tuple(spans)
