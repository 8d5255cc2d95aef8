"""Standby: who of the peers that keep weights ready should serve when blocks lack peers, and who may rest again.

    prepare(view, ...)     ->  the span that a standby should have on its disk
    called(view, peer)     ->  whether blocks lack peers that it could serve, and in which round it is its turn
    watched(view, peer)    ->  who it should look after, since it is among the first to be called if they go
    beside(view, peer)     ->  who serves blocks that it has ready
    may_rest(view, peer)   ->  whether the swarm does without it
    rests_in(view, peer)   ->  whether it is the one to rest in this slot of time

Everybody who sees the same view makes the same list of calls. Its first round has no more peers than are needed; those
of a later one wait, look again, and go if the earlier have not come: so a block that fifty peers could serve gets as
many of them as it lacks. Of those that serve and are not needed any more only one at a time may rest.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from routing.placement import COMING, REPLICAS, Placement, place
from routing.view import View, runs
from swarm.ids import PeerId, Span
from swarm.record import PeerRecord, PeerState

__all__ = [
    "MOST_ROUNDS",
    "MOST_WATCHED",
    "Call",
    "beside",
    "called",
    "may_rest",
    "prepare",
    "rank_among_uncovering",
    "rests_in",
    "watched",
]

MOST_ROUNDS = 8  # who comes later than that looks again when these have had their time
WATCHING_ROUNDS = 2  # those called later learn from the directory that a peer is gone
MOST_WATCHED = 8


@dataclass(frozen=True, slots=True)
class Call:
    """`round`: 0 goes at once, each later one when the one before has had time to come. `blocks`: those that have too
    few peers and that it would serve."""

    round: int
    blocks: tuple[int, ...]

    @property
    def reason(self) -> str:
        """In words a volunteer understands."""
        return f"blocks {', '.join(map(str, runs(self.blocks)))} have too few peers"


def called(view: View, peer: PeerId, *, wanted: int = REPLICAS, without: Collection[PeerId] = ()) -> Call | None:
    """Whether `peer`, a standby in `view`, should serve its span now. None: it is not needed, or many others are before
    it. `wanted`: peers that each block should have. `without`: peers that don't count, since they do not answer or are
    slow to join."""
    counts = _counts(view, COMING, without)
    lacking = {block: wanted - count for block, count in enumerate(counts) if count < wanted}
    waiting = [r for r in view.peers if r.state is PeerState.STANDBY and (r.peer == peer or r.peer not in without)]
    for number in range(MOST_ROUNDS):
        chosen = _round(waiting, lacking, counts)
        if not chosen:
            return None
        if own := next((record for record in chosen if record.peer == peer), None):
            return Call(number, tuple(block for block in own.span if block in lacking))
        waiting = [record for record in waiting if record not in chosen]
    return None


def _round(waiting: Sequence[PeerRecord], lacking: Mapping[int, int], counts: Sequence[int]) -> list[PeerRecord]:
    """As many of those that wait as it takes to give each block what it lacks, as far as they can."""
    left, chosen, free = dict(lacking), [], list(waiting)
    while free:
        best = min(free, key=lambda record: _order(record, left, counts))
        helped = [block for block in best.span if left.get(block, 0) > 0]
        if not helped:
            break
        free.remove(best)
        chosen.append(best)
        for block in helped:
            left[block] -= 1
    return chosen


def _order(record: PeerRecord, left: Mapping[int, int], counts: Sequence[int]) -> tuple[int, int, float, bytes]:
    """First who gives most blocks a peer that have none, then most that have too few; the faster, then by lot."""
    helped = [block for block in record.span if left.get(block, 0) > 0]
    none = sum(counts[block] == 0 for block in helped)
    return -none, -len(helped), -record.throughput, _lot(record.peer, *helped[:1])


def watched(view: View, peer: PeerId, *, wanted: int = REPLICAS, without: Collection[PeerId] = ()) -> list[PeerRecord]:
    """Those online peers without any one of which `peer`, a standby in `view`, would be called in one of the first
    rounds. So each has a few others that look whether it lives, however many stand by."""
    found: list[PeerRecord] = []
    for record in beside(view, peer):
        call = called(view, peer, wanted=wanted, without={*without, record.peer})
        if call is not None and call.round < WATCHING_ROUNDS and len(found) < MOST_WATCHED:
            found.append(record)
    return found


def beside(view: View, peer: PeerId) -> list[PeerRecord]:
    """Who is online with blocks of the span of `peer`, in an order that is the same for all who ask."""
    own = view.get(peer)
    near = [r for r in view.peers if own and r.state is PeerState.ONLINE and _meet(r.span, own.span)]
    return sorted(near, key=lambda record: _lot(record.peer))


def may_rest(view: View, peer: PeerId, *, wanted: int = REPLICAS) -> bool:
    """Whether each block that `peer` serves has as many other peers online as are wanted."""
    own = view.get(peer)
    counts = _counts(view, (PeerState.ONLINE,), (peer,))
    return own is not None and all(counts[block] >= wanted for block in own.span)


def rests_in(view: View, peer: PeerId, slot: int) -> bool:
    """Whether in the slot of time of this number it is for `peer` to rest, of all online peers that have a block in
    common with it. Slots are much longer than views are old, so two that see each other never rest in the same."""
    own = view.get(peer)
    if own is None:
        return False
    near = (r.peer for r in view.peers if r.state is PeerState.ONLINE and _meet(r.span, own.span))
    return min({peer, *near}, key=lambda one: _lot(one, slot)) == peer


def prepare(
    view: View,
    peer: PeerId,
    *,
    capacity: int,
    block_rate: float,
    fixed: Span | None = None,
    current: Span | None = None,
) -> Placement:
    """The span of which `peer` should have the weights: where the fewest peers serve or stand by. It is `current`, the
    span that it has already, unless another has fewer peers even with this one. Raises UsageError as `place` does."""
    ready = (replace(r, state=PeerState.ONLINE) if r.state is PeerState.STANDBY else r for r in view.peers)
    backed = View(view.model, view.num_blocks, tuple(ready), view.taken)
    best = place(
        backed, capacity=capacity, block_rate=block_rate, peer=peer, fixed=fixed, replicas=max(1, len(view.peers))
    )
    if current is None or fixed is not None or current.end > view.num_blocks:
        return best
    counts = _counts(backed, COMING, (peer,))
    if _least(counts, best.span) < _least(counts, current):
        return best
    return replace(best, span=current, reason=f"no span has fewer peers than {current}, which is on the disk already")


def rank_among_uncovering(
    view: View, peer: PeerId, *, wanted: int = REPLICAS, without: Collection[PeerId] = ()
) -> int | None:
    """Where blocks lack peers and no standby is ready for them: how many others should think of them before `peer`, a
    standby. None: there are no such blocks."""
    standbys = [record for record in view.peers if record.state is PeerState.STANDBY]
    ready = {block for record in standbys for block in record.span}
    counts = _counts(view, COMING, without)
    lacking = next((b for b, count in enumerate(counts) if count < wanted and b not in ready), None)
    if lacking is None:
        return None
    return sum(_lot(record.peer, lacking) < _lot(peer, lacking) for record in standbys)


def _least(counts: Sequence[int], span: Span) -> int:
    return min(counts[block] for block in span)


def _counts(view: View, states: Collection[PeerState], without: Collection[PeerId]) -> list[int]:
    """How many peers in one of `states` each block has."""
    counts = [0] * view.num_blocks
    for record in view.peers:
        if record.state in states and record.peer not in without:
            for block in record.span:
                counts[block] += 1
    return counts


def _meet(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


def _lot(peer: PeerId, *what: int) -> bytes:
    return blake2b(f"{peer} {' '.join(map(str, what))}".encode(), digest_size=8).digest()
