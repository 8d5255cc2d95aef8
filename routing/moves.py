"""Moves: whether a peer that serves a span should leave it for another, so that the swarm's weakest block gains.

    reconsider(view, peer)  ->  a Placement: the same span and why it stays, or another and what that gains
    plan_moves(view)        ->  all moves that the peers of one view should make, as each of them works them out

Everybody who sees the same view makes the same plan and follows its own line of it, so that a thousand peers that see
one weak block don't all run there. Views differ a little, and some peers never move (their user chose the blocks), so a
line is followed only if that move is an improvement by itself too. Whatever the order in which peers move one after the
other, the sum that they all lower (see `_Loads`) then falls with every move: they can't go round in circles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

from routing.placement import COMING, Placement, block_rates
from routing.view import View, runs
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.record import PeerRecord, PeerState

__all__ = ["MIN_GAIN", "Move", "Plan", "plan_moves", "reconsider"]

MIN_GAIN = 0.05  # of the weakest block's throughput: a move costs its peer's sessions a new chain, and a load from disk
STEEPNESS = (8.0, 32.0, 16.0)  # how much more weak blocks count: flat finds room for many
STEEPEST = 64.0  # and fills gaps, at the end of each search
BETTER = 1.02  # a span is worth this many times another's need before a peer changes to it
SLACK = 0.99  # of what the plan gains: moves without which this much remains are not made
PASSES = 4  # over all peers, each of which takes what is best for it as the others stand
SEARCHES = 120  # for moves of ten peers or fewer, less with more: a small swarm is a puzzle, a large one is not
FEWER = 1.5  # the power with which searches get fewer
STRONGEST_FIRST = 2  # searches in which the strongest peers choose first


@dataclass(frozen=True, slots=True)
class Move:
    """One peer's line of a plan."""

    peer: PeerId
    origin: Span
    target: Span


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves that together raise the rows per second of the weakest of the blocks from `before` to `after`."""

    moves: tuple[Move, ...]
    weakest: tuple[Span, ...]  # before
    before: float
    after: float

    @property
    def gain(self) -> float:
        """As a share of `before`; infinite where a block has no peer."""
        if self.after <= self.before:
            return 0.0
        return self.after / self.before - 1 if self.before else math.inf

    def of(self, peer: PeerId) -> Move | None:
        return next((move for move in self.moves if move.peer == peer), None)


def reconsider(view: View, peer: PeerId, *, min_gain: float = MIN_GAIN, plan: Plan | None = None) -> Placement:
    """Where `peer`, which `view` says is online, should be: `span` is another than it holds if it should move.

    `before` and `after` are the weakest block's rows per second now and when everyone has followed the plan. `plan`: of
    this view, where it is known already. Raises UsageError for a peer that is not in `view`.
    """
    record = view.get(peer)
    if record is None:
        raise UsageError(f"peer {peer} is not announced, so there is nothing to move")
    plan = plan or plan_moves(view, min_gain=min_gain)
    move = plan.of(peer)
    if not plan.moves:
        return Placement(record.span, _enough(plan, min_gain), plan.before, plan.before)
    if move is None:
        return Placement(
            record.span, f"others are better placed to help {_named(plan.weakest)}", plan.before, plan.after
        )
    if not _helps_alone(view, record, move.target):
        return Placement(record.span, f"{move.target} helps only once others have moved", plan.before, plan.after)
    return Placement(move.target, _why(plan, move), plan.before, plan.after)


def plan_moves(view: View, *, min_gain: float = MIN_GAIN) -> Plan:
    """The fewest moves found that raise the weakest block by `min_gain` of its throughput or more; none if none do.

    A joining peer counts where it goes and does not move, nor does one whose user chose its blocks. A peer keeps as
    many blocks as it has. Of the online peers of a block one stays, so that no block is without a peer while others
    are on their way. All of this is the same for everyone who has the same view.
    """
    loads = block_rates(view)
    before = min(loads)
    nothing = Plan((), runs(b for b, load in enumerate(loads) if load == before), before, before)
    most = _most(view)
    if most < before * (1 + min_gain) or not most:
        return nothing
    count = max(1, round(SEARCHES / max(1.0, (len(view.peers) / 10) ** FEWER)))
    plans = [_Search(view, loads, most, turn).plan(nothing) for turn in range(count)]
    enough = max(plan.after for plan in plans) * SLACK
    best = min((plan for plan in plans if plan.after >= enough), key=lambda plan: (len(plan.moves), -plan.after))
    return best if best.gain >= min_gain and best.moves else nothing


def _most(view: View) -> float:
    """More rows per second than this no placement of these peers gives the weakest block.

    It is the t for which the sum over peers of blocks * min(rate, t) is t for every block: what a peer has beyond t, or
    boasts of, helps only its own blocks.
    """
    peers = sorted((record for record in view.peers if record.state in COMING), key=lambda record: record.throughput)
    work = list(accumulate((record.throughput * len(record.span) for record in peers), initial=0.0))
    room = view.num_blocks
    while peers and room > len(peers[-1].span) and peers[-1].throughput > work[len(peers)] / room:
        room -= len(peers.pop().span)
    return work[len(peers)] / room


class _Loads:
    """The rows per second of each block, and the need for more: exp(-steepness * load / most), which all want to lower
    in sum. A peer lowers it most by going where the sum of its blocks' needs is greatest, however fast it is."""

    def __init__(self, loads: Sequence[float], most: float, steepness: float) -> None:
        self.rates = list(loads)
        self._scale = -steepness / most
        self._needs = [math.exp(self._scale * load) for load in loads]

    def add(self, span: Span, rate: float) -> None:
        for block in span:
            load = max(self.rates[block] + rate, 0.0)
            self.rates[block] = load
            self._needs[block] = math.exp(self._scale * load)

    def need(self, span: Span) -> float:
        return sum(self._needs[span.start : span.end])

    def neediest(self, size: int) -> Span:
        """The adjoining blocks that need another peer most; the first of several."""
        sums = list(accumulate(self._needs, initial=0.0))
        needs = [end - start for start, end in zip(sums, sums[size:], strict=False)]
        most = max(needs) * (1 - 1e-9)  # another machine's exp may differ in the last digit
        start = next(start for start, need in enumerate(needs) if need >= most)
        return Span(start, start + size)


class _Search:
    """Looks for moves from one view."""

    def __init__(self, view: View, loads: Sequence[float], most: float, turn: int) -> None:
        self._most = most
        self._loads = _Loads(loads, most, STEEPNESS[turn % len(STEEPNESS)])
        online = [record for record in view.peers if record.state is PeerState.ONLINE]
        movable = [record for record in online if not record.fixed]
        self._peers = sorted(movable, key=lambda record: _turn(record, turn))
        self._at = {record.peer: record.span for record in online}
        self._staying = list(view.replication())

    def plan(self, nothing: Plan) -> Plan:
        self._descend()
        self._loads = _Loads(self._loads.rates, self._most, STEEPEST)
        self._descend()
        after = min(self._loads.rates)
        if after <= nothing.before:
            return nothing
        self._take_back(after * SLACK)
        moves = tuple(Move(r.peer, r.span, self._at[r.peer]) for r in self._peers if self._at[r.peer] != r.span)
        return Plan(moves, nothing.weakest, nothing.before, min(self._loads.rates))

    def _descend(self) -> None:
        """Every peer goes where it is needed most, again and again."""
        for _ in range(PASSES):
            if not sum(map(self._try, self._peers)):
                break

    def _try(self, record: PeerRecord) -> bool:
        """Moves this peer to where it is needed most, if that is clearly elsewhere."""
        here = self._at[record.peer]
        if here == record.span and not self._may_leave(record.span):
            return False
        self._loads.add(here, -record.throughput)
        there = self._loads.neediest(len(here))
        moves = self._loads.need(there) > BETTER * self._loads.need(here)
        self._put(record, there if moves else here)
        return moves

    def _may_leave(self, span: Span) -> bool:
        return min(self._staying[span.start : span.end]) > 1

    def _put(self, record: PeerRecord, span: Span) -> None:
        """This peer, whose load has been taken away, goes to `span`."""
        self._loads.add(span, record.throughput)
        change = (self._at[record.peer] != record.span) - (span != record.span)
        for block in record.span if change else ():
            self._staying[block] += change
        self._at[record.peer] = span

    def _take_back(self, enough: float) -> None:
        """Unmakes each move, those of the slowest first, without which the weakest block still has `enough`."""
        for record in reversed(self._peers):
            there = self._at[record.peer]
            if there == record.span:
                continue
            self._loads.add(there, -record.throughput)
            self._put(record, record.span)
            if min(self._loads.rates) < enough:
                self._loads.add(record.span, -record.throughput)
                self._put(record, there)


def _turn(record: PeerRecord, turn: int) -> tuple[int, bytes]:
    """Those that compute most go first, so that few moves do and the slower ones fill the gaps; equal ones by lot.
    After the first searches all go by lot."""
    _, magnitude = math.frexp(record.throughput * len(record.span))
    return -magnitude * (turn < STRONGEST_FIRST), blake2b(f"{turn} {record.peer}".encode(), digest_size=8).digest()


def _helps_alone(view: View, record: PeerRecord, target: Span) -> bool:
    """Whether the sum of needs falls if nobody but this peer moves."""
    loads = _Loads(block_rates(view), _most(view), STEEPNESS[0])
    loads.add(record.span, -record.throughput)
    return loads.need(target) > BETTER * loads.need(record.span)


def _why(plan: Plan, move: Move) -> str:
    others = len(plan.moves) - 1
    together = f" with {others} other move{'s' * (others > 1)}" if others else ""
    if not plan.before:
        return (
            f"{_named(plan.weakest)} had no peer; from {move.origin} to {move.target}{together} gives every block one"
        )
    return (
        f"{_named(plan.weakest)} had the least throughput, {plan.before:.3g} rows/s; "
        f"from {move.origin} to {move.target}{together} makes the least {plan.after:.3g} (+{plan.gain:.0%})"
    )


def _enough(plan: Plan, min_gain: float) -> str:
    return f"no move would give the weakest block, {_named(plan.weakest)}, {min_gain:.0%} more throughput"


def _named(spans: Sequence[Span]) -> str:
    return "blocks " + ", ".join(map(str, spans))
