"""Chains: which hops compute which blocks, and the plan that is predicted to be fastest around the ring."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from routing.crossing import Crossing
from routing.perf import Costs, Link, Links, Pace, Stage, predict
from routing.search import Field, shortest_ring
from routing.view import View, runs
from swarm.errors import MissingBlocks
from swarm.ids import PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord

__all__ = ["Chain", "Hop", "plan_chain"]


@dataclass(frozen=True, slots=True)
class Hop:
    """The part of a peer's span that a chain uses."""

    contact: Contact
    span: Span
    seconds: float  # predicted compute of one decode step, load included
    token_seconds: float | None = None  # s each further token of a step adds; unknown: as much as a whole step
    link: Link | None = None  # the way into this hop, where it was predicted
    name: str = ""  # the peer's public name

    @property
    def peer(self) -> PeerId:
        return self.contact.peer

    def __str__(self) -> str:
        return f"{self.span} @ {self.name or self.peer[-8:]}"

    def step(self, more: int) -> float:
        """Seconds of a step that has `more` tokens than the decode step this hop was planned for."""
        return self.seconds + more * (self.seconds if self.token_seconds is None else self.token_seconds)


@dataclass(frozen=True, slots=True)
class Chain:
    """Hops that cover a span exactly once, in order."""

    hops: tuple[Hop, ...]
    seconds: float  # predicted latency of one decode step around the ring
    reason: str  # a sentence
    back: Link | None = None  # the way from the last hop on, where it was predicted
    rows: int = 1  # in the decode step that was planned for
    token_bytes: int = 0  # a hidden state on the wire

    def __post_init__(self) -> None:
        cuts = [(a.span.end, b.span.start) for a, b in zip(self.hops, self.hops[1:], strict=False)]
        if not self.hops or any(end != start for end, start in cuts):
            raise ValueError(f"the hops of a chain adjoin, unlike {self}")

    @property
    def span(self) -> Span:
        return Span(self.hops[0].span.start, self.hops[-1].span.end)

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(hop.peer for hop in self.hops)

    def __iter__(self) -> Iterator[Hop]:
        return iter(self.hops)

    def __str__(self) -> str:
        return "  ".join(map(str, self.hops))

    def step_seconds(self, tokens: int) -> float:
        """Predicted latency of a step of `tokens` tokens over all rows, in one chunk."""
        more = max(0, tokens - self.rows)
        compute = sum(hop.step(more) - hop.seconds for hop in self.hops)
        travel = sum(more * self.token_bytes / hop.link.bandwidth for hop in self.hops if hop.link)
        return self.seconds + compute + travel

    def spliced(self, part: "Chain") -> "Chain":
        """This chain with `part` in place of the hops within its span; the cuts must agree."""
        before = tuple(hop for hop in self.hops if hop.span.end <= part.span.start)
        after = tuple(hop for hop in self.hops if hop.span.start >= part.span.end)
        back = self.back if after else part.back
        if after:
            after = (replace(after[0], link=part.back), *after[1:])
        hops = before + part.hops + after
        change = self._known(hops, back) - self._known(self.hops, self.back)
        return replace(self, hops=hops, seconds=self.seconds + change, reason=part.reason, back=back)

    def _known(self, hops: Sequence[Hop], back: Link | None) -> float:
        """Seconds of a decode step through `hops`; links that were never predicted count nothing."""
        size = self.rows * self.token_bytes
        travel = sum(link.transfer(size) for link in [*(hop.link for hop in hops), back] if link)
        return travel + sum(hop.seconds for hop in hops)


def plan_chain(
    view: View,
    blocks: Span,
    *,
    links: Links,
    source: PeerId,
    sink: PeerId,
    avoid: Collection[PeerId] = frozenset(),
    used: Collection[PeerId] = frozenset(),
    rows: int = 1,
    tokens: int = 0,
    token_bytes: int,
    costs: Costs | None = None,
    salt: bytes = b"",
) -> Chain:
    """The chain over `blocks` with the least predicted latency of a decode step: source → hops → sink.

    No peer of `avoid` (known bad) or `used` (already in this session: a peer has one hop of a session) takes part, and
    none appears twice. `rows` are in one step, `token_bytes` is a hidden state on the wire, `tokens` the KV that every
    hop must reserve. Among peers nearly as good, `salt` decides: different clients choose differently, each one always
    the same. To mend a chain, `source` and `sink` are the living hops around the gap.
    Raises MissingBlocks: the message tells blocks that nobody holds from those held only by peers left out.
    """
    costs = costs or Costs()
    peers = _candidates(view, blocks, avoid, {*used, source, sink})
    paces = [Pace.of(record, costs) for record in peers]
    spread = np.array([1 + costs.spread * _lot(salt, record.peer) for record in peers])
    fixed = spread * [pace.wait for pace in paces] + [costs.full * (r.cache_left < tokens) for r in peers]
    size = rows * token_bytes
    field = Field(
        holds=_holds(peers, blocks),
        block=spread * [pace.step(1, rows) - pace.wait for pace in paces],
        enter=spread * [links.between(source, record.peer).transfer(size) for record in peers] + fixed,
        leave=spread * [links.between(record.peer, sink).transfer(size) for record in peers],
        cross=Crossing(peers, links, size, spread, fixed),
    )
    legs = [
        (peers[i], paces[i], Span(blocks.start + start, blocks.start + end))
        for i, start, end in shortest_ring(field, costs.width)
    ]
    return _chain(legs, links, source, sink, rows, token_bytes, len(peers))


def _candidates(view: View, blocks: Span, avoid: Collection[PeerId], used: Collection[PeerId]) -> list[PeerRecord]:
    """Every peer that may compute some of `blocks`, by peer id; each block has one, or MissingBlocks."""
    found: dict[PeerId, PeerRecord] = {}
    nobody: list[int] = []
    kept_out: list[int] = []
    for block in blocks:
        holders = view.holders(block)
        usable = {record.peer: record for record in holders if record.peer not in avoid and record.peer not in used}
        found |= usable
        if not usable:
            (kept_out if holders else nobody).append(block)
    if not nobody and not kept_out:
        return [found[peer] for peer in sorted(found)]
    sentences = []
    if nobody:
        sentences.append(
            f"no online peer holds {_named(nobody)}; serve them with swarm-serve, or wait for a peer to join"
        )
    if kept_out:
        sentences.append(_why_kept_out(view, kept_out, avoid))
    raise MissingBlocks(sorted(nobody + kept_out), ". ".join(sentences))


def _why_kept_out(view: View, blocks: Sequence[int], avoid: Collection[PeerId]) -> str:
    holders = sorted({record.peer for block in blocks for record in view.holders(block)})
    bad = sum(peer in avoid for peer in holders)
    causes = [
        f"{count} {cause}"
        for count, cause in ((bad, "failed lately"), (len(holders) - bad, "already in this session's chain"))
        if count
    ]
    return f"{_named(blocks)} are held only by peers that can't be used now ({', '.join(causes)})"


def _named(blocks: Sequence[int]) -> str:
    return "blocks " + ", ".join(map(str, runs(blocks)))


def _holds(peers: Sequence[PeerRecord], blocks: Span) -> NDArray[np.bool_]:
    starts = np.array([record.span.start for record in peers])
    ends = np.array([record.span.end for record in peers])
    grid = np.arange(blocks.start, blocks.end)
    held: NDArray[np.bool_] = (starts[:, None] <= grid) & (grid < ends[:, None])
    return held


def _lot(salt: bytes, peer: PeerId) -> float:
    """A number in [0, 1) that looks random and is always the same for one client and peer."""
    return int.from_bytes(blake2b(peer.encode(), key=salt[:64], digest_size=6).digest()) / (1 << 48)


def _chain(
    legs: Sequence[tuple[PeerRecord, Pace, Span]],
    links: Links,
    source: PeerId,
    sink: PeerId,
    rows: int,
    token_bytes: int,
    candidates: int,
) -> Chain:
    hops = []
    at = source
    for record, pace, span in legs:
        seconds, more = pace.step(len(span), rows), len(span) * pace.token
        hops.append(Hop(record.contact, span, seconds, more, links.between(at, record.peer), record.public_name))
        at = record.peer
    back = links.between(at, sink)
    stages = [Stage(str(hop), hop.link, hop.seconds) for hop in hops if hop.link]
    found = predict(stages, back, rows=rows, token_bytes=token_bytes)
    reason = (
        f"the fastest known way among {candidates} peers: {_ms(found.latency)} a step, "
        f"of which {found.critical} takes {_ms(found.critical_seconds)}"
    )
    return Chain(tuple(hops), found.latency, reason, back, rows, token_bytes)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
