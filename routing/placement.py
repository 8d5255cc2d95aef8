"""Placement: which span a joining peer should host so that the swarm's weakest block gains most."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from routing.view import View, runs
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.record import PeerState

__all__ = ["REPLICAS", "Placement", "block_rates", "place"]

COMING = (PeerState.JOINING, PeerState.ONLINE)  # a joining peer counts, so that the next one goes elsewhere
BITS = 30  # rates that agree to this precision are equal; sums in another order are
REPLICAS = 2  # with a peer to spare, a block outlives any one of them

Standing = tuple[int, float]  # of a block: its peers as far as they count, then its rows per second; less is weaker


@dataclass(frozen=True, slots=True)
class Placement:
    """A span, why it was chosen, and the rows per second of the swarm's weakest block without and with it."""

    span: Span
    reason: str
    before: float
    after: float


def place(
    view: View,
    *,
    capacity: int,
    block_rate: float,
    peer: PeerId,
    fixed: Span | None = None,
    current: Span | None = None,
    replicas: int = REPLICAS,
) -> Placement:
    """The span for `peer`, which can hold `capacity` blocks and computes `block_rate` rows per second through one.

    Chosen is what lifts the weakest block, then the second weakest, and so on; of two blocks that one is weaker which
    has fewer peers, up to `replicas`, then the one with less throughput. Spans equal in this are told apart by what
    they leave of the weakest blocks, the fewest pieces and the fewest further peers; then by lot, so that peers that
    join at the same moment differ.

    What `view` says of `peer` itself is ignored. `fixed` is taken as it is, whatever the capacity.

    Peers that joined at the same moment did not see one another. Each asks again, with its span as `current`, once it
    has announced it: the span is kept if none is better among all others. Else the peer moves to the best span among
    those that do not join and those joiners that sort before it, so of several one stays where the others move, and a
    round of asking for each joiner settles all. Raises UsageError on no capacity or a span that the model has not.
    """
    if fixed is not None:
        return _fixed(view, fixed, block_rate, peer, replicas)
    if capacity < 1:
        raise UsageError("this machine has no room for even one block: free some memory or choose a smaller precision")
    blocks = _standings(_hosts(view, without=peer), replicas)
    size = min(capacity, view.num_blocks)
    new = _Newcomer(peer, size, block_rate / size, replicas)
    span = new.best(blocks)
    if current is not None and len(current) == size and current.end <= view.num_blocks:
        earlier = _standings(_hosts(view, without=peer, joiners_before=peer), replicas)
        moved = new.best(earlier)
        settled = new.value(blocks, span) == new.value(blocks, current) or (
            new.value(earlier, moved) == new.value(earlier, current)
        )
        span = current if settled else moved
    return _placement(blocks, span, new.rate, _reason(blocks, span, replicas))


def block_rates(view: View, *, states: Collection[PeerState] = COMING) -> tuple[float, ...]:
    """Rows per second of each block: the sum over the peers in `states` that name it; 0 for a missing one."""
    return tuple(math.fsum(rates) for rates in _hosts(view, states=states))


def _hosts(
    view: View,
    *,
    states: Collection[PeerState] = COMING,
    without: PeerId | None = None,
    joiners_before: PeerId | None = None,
) -> list[list[float]]:
    """For each block the rates of its peers, but `without` and joiners that do not sort before `joiners_before`."""
    rates: list[list[float]] = [[] for _ in range(view.num_blocks)]
    for record in view.peers:
        late = joiners_before is not None and record.state is PeerState.JOINING and record.peer >= joiners_before
        if record.state in states and record.peer != without and not late:
            for block in record.span:
                rates[block].append(record.throughput)
    return rates


def _standings(hosts: Sequence[Sequence[float]], replicas: int) -> list[Standing]:
    # fsum is exact: equal sets of peers give equal rates
    return [(min(len(rates), replicas), math.fsum(rates)) for rates in hosts]


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """A peer that looks for `size` adjoining blocks and brings `rate` rows per second to each."""

    peer: PeerId
    size: int
    rate: float
    replicas: int

    def best(self, blocks: Sequence[Standing]) -> Span:
        spans = [Span(start, start + self.size) for start in range(len(blocks) - self.size + 1)]
        values = {span: self.value(blocks, span) for span in spans}
        top = max(values.values())
        equal = (span for span in spans if values[span] == top)
        return min(equal, key=lambda span: (*self.leftover(blocks, span), self.lot(span)))

    def value(self, blocks: Sequence[Standing], span: Span) -> list[Standing]:
        """The blocks with `span` hosted by this peer, weakest first: more is better."""
        return sorted(self._with(blocks, span))

    def leftover(self, blocks: Sequence[Standing], span: Span) -> tuple[int, int]:
        """The weakest blocks that then remain: in how many pieces, and how many peers like this one they take."""
        after = self._with(blocks, span)
        weakest = min(after)
        left = runs(block for block, standing in enumerate(after) if standing == weakest)
        return len(left), sum(math.ceil(len(piece) / self.size) for piece in left)

    def lot(self, span: Span) -> bytes:
        return blake2b(f"{self.peer} {span}".encode(), digest_size=8).digest()

    def _with(self, blocks: Sequence[Standing], span: Span) -> list[Standing]:
        return [
            (min(count + 1, self.replicas), _rounded(rate + self.rate)) if block in span else (count, _rounded(rate))
            for block, (count, rate) in enumerate(blocks)
        ]


def _rounded(rate: float) -> float:
    fraction, exponent = math.frexp(rate)
    return math.ldexp(round(math.ldexp(fraction, BITS)), exponent - BITS)


def _fixed(view: View, span: Span, block_rate: float, peer: PeerId, replicas: int) -> Placement:
    if span.end > view.num_blocks:
        raise UsageError(f"the model has blocks 0:{view.num_blocks}; {span} is not among them")
    blocks = _standings(_hosts(view, without=peer), replicas)
    return _placement(blocks, span, block_rate / len(span), f"blocks {span} were asked for")


def _placement(blocks: Sequence[Standing], span: Span, rate: float, reason: str) -> Placement:
    before = [rate for _, rate in blocks]
    after = [old + rate if block in span else old for block, old in enumerate(before)]
    return Placement(span, reason, min(before), min(after))


def _reason(blocks: Sequence[Standing], span: Span, replicas: int) -> str:
    """Why this span, in words a volunteer understands."""
    standings = [(count, _rounded(rate)) for count, rate in blocks]
    count, rate = least = min(standings)
    weak = [block for block in span if standings[block] == least]
    few = [block for block in span if standings[block][0] == count]
    if few and count == 0:
        return f"{_named(few)} had no peer"
    if few and count < replicas:
        return f"{_named(few)} had only {count} peer{'s' * (count > 1)}"
    if len(span) == len(blocks):
        return f"this machine holds all {len(blocks)} blocks"
    if not weak:
        return f"no other span would help the weakest block more than {span}"
    if least == max(standings):
        return f"every block had the same throughput, {_figure(rate)} rows/s, and {span} was drawn by lot"
    others = min(standings[block] for block in range(len(blocks)) if block not in weak)
    if others == least:
        return f"{_named(weak)} were among the weakest: {_figure(rate)} rows/s"
    return f"{_named(weak)} had the least throughput: {_figure(rate)} rows/s against {_figure(others[1])} elsewhere"


def _named(blocks: Iterable[int]) -> str:
    return "blocks " + ", ".join(map(str, runs(blocks)))


def _figure(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
