"""Placement: which span a joining peer should host so that the swarm's weakest block gains most."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from routing.view import View, runs
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.record import PeerState

__all__ = ["Placement", "block_rates", "place"]

COMING = (PeerState.JOINING, PeerState.ONLINE)  # a joining peer counts, so that the next one goes elsewhere
BITS = 30  # rates that agree to this precision are equal; sums in another order are


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
) -> Placement:
    """The span for `peer`, which can hold `capacity` blocks and computes `block_rate` rows per second through one.

    Chosen is what lifts the weakest block, then the second weakest, and so on; then what leaves the weakest blocks in
    the fewest pieces and to the fewest further peers; then by lot, so that peers that join at the same moment differ.
    What `view` says of `peer` itself is ignored. `fixed` is taken as it is, whatever the capacity.

    Peers that joined at the same moment did not see one another. Each asks again, with its span as `current`, once it
    has announced it: the span is kept if none is better among all others. Else the peer moves to the best span among
    those that do not join and those joiners that sort before it, so of several one stays where the others move, and a
    round of asking for each joiner settles all. Raises UsageError on no capacity or a span that the model has not.
    """
    if fixed is not None:
        return _fixed(view, fixed, block_rate, peer)
    if capacity < 1:
        raise UsageError("this machine has no room for even one block: free some memory or choose a smaller precision")
    rates = block_rates(view, without=peer)
    size = min(capacity, view.num_blocks)
    rate = block_rate / size
    span = _best(rates, size, rate, peer)
    if current is not None and len(current) == size and current.end <= view.num_blocks:
        earlier = block_rates(view, without=peer, joiners_before=peer)
        moved = _best(earlier, size, rate, peer)
        settled = not _is_better(rates, span, current, rate) or not _is_better(earlier, moved, current, rate)
        span = current if settled else moved
    return _placement(rates, span, rate, _reason(rates, span))


def block_rates(
    view: View,
    *,
    states: Collection[PeerState] = COMING,
    without: PeerId | None = None,
    joiners_before: PeerId | None = None,
) -> tuple[float, ...]:
    """Rows per second of each block: the sum over the peers that hold it or are about to; 0 for a missing one.

    `without` is left out, and so are joining peers whose ids do not sort before `joiners_before`.
    """
    rates: list[list[float]] = [[] for _ in range(view.num_blocks)]
    for record in view.peers:
        late = joiners_before is not None and record.state is PeerState.JOINING and record.peer >= joiners_before
        if record.state in states and record.peer != without and not late:
            for block in record.span:
                rates[block].append(record.throughput)
    return tuple(map(math.fsum, rates))  # exact, so equal sets of peers give equal rates


def _best(rates: Sequence[float], size: int, rate: float, peer: PeerId) -> Span:
    spans = [Span(start, start + size) for start in range(len(rates) - size + 1)]
    after = {span: _sorted_after(rates, span, rate) for span in spans}
    top = max(after.values())
    return min(
        (span for span in spans if after[span] == top),
        key=lambda span: (*_pieces(rates, span, rate), _lot(peer, span)),
    )


def _after(rates: Sequence[float], span: Span, rate: float) -> list[float]:
    return [_rounded(r + rate if block in span else r) for block, r in enumerate(rates)]


def _sorted_after(rates: Sequence[float], span: Span, rate: float) -> list[float]:
    return sorted(_after(rates, span, rate))


def _pieces(rates: Sequence[float], span: Span, rate: float) -> tuple[int, int]:
    """The weakest blocks that are left: in how many pieces, and how many peers like this one they take."""
    after = _after(rates, span, rate)
    weakest = min(after)
    left = runs(block for block, r in enumerate(after) if r == weakest)
    return len(left), sum(math.ceil(len(piece) / len(span)) for piece in left)


def _is_better(rates: Sequence[float], span: Span, than: Span, rate: float) -> bool:
    return _sorted_after(rates, span, rate) > _sorted_after(rates, than, rate)


def _rounded(rate: float) -> float:
    fraction, exponent = math.frexp(rate)
    return math.ldexp(round(math.ldexp(fraction, BITS)), exponent - BITS)


def _lot(peer: PeerId, span: Span) -> bytes:
    return blake2b(f"{peer} {span}".encode(), digest_size=8).digest()


def _fixed(view: View, span: Span, block_rate: float, peer: PeerId) -> Placement:
    if span.end > view.num_blocks:
        raise UsageError(f"the model has blocks 0:{view.num_blocks}; {span} is not among them")
    rates = block_rates(view, without=peer)
    return _placement(rates, span, block_rate / len(span), f"blocks {span} were asked for")


def _placement(rates: Sequence[float], span: Span, rate: float, reason: str) -> Placement:
    after = min(r + rate if block in span else r for block, r in enumerate(rates))
    return Placement(span, reason, min(rates), after)


def _reason(rates: Sequence[float], span: Span) -> str:
    """Why this span, in words a volunteer understands."""
    levels = [_rounded(rate) for rate in rates]
    least = min(levels)
    weak = [block for block in span if levels[block] == least]
    named = "blocks " + ", ".join(map(str, runs(weak)))
    if weak and least == 0:
        return f"{named} had no peer"
    if len(span) == len(rates):
        return f"this machine holds all {len(rates)} blocks"
    if not weak:
        return f"no other span would help the weakest block more than {span}"
    if least == max(levels):
        return f"every block had the same throughput, {_figure(least)} rows/s, and {span} was drawn by lot"
    others = min(level for block, level in enumerate(levels) if block not in weak)
    if others == least:
        return f"{named} were among the weakest: {_figure(least)} rows/s"
    return f"{named} had the least throughput: {_figure(least)} rows/s against {_figure(others)} elsewhere"


def _figure(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
