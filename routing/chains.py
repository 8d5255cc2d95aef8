"""Chains: which hops compute which blocks, and the plan that is predicted to be fastest around the ring."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from random import Random
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from routing.crossing import Crossing
from routing.load import Load
from routing.pairs import pairs
from routing.perf import Costs, Link, Links, Pace, Stage, predict
from routing.search import Field, shortest_ring
from routing.view import View, runs
from swarm.errors import MissingBlocks
from swarm.ids import PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord

__all__ = ["PIECE", "Chain", "Hop", "piece_tokens", "plan_chain", "step_seconds"]

PIECE = 16  # tokens; pieces of prompts are multiples, as pages are, so that pages come whole


@dataclass(frozen=True, slots=True)
class Hop:
    """The part of a peer's span that a chain uses."""

    contact: Contact
    span: Span
    seconds: float  # predicted compute of one decode step, load included
    token_seconds: float | None = None  # s each further token of a step adds; unknown: as much as a whole step
    wait: float = 0.0  # of `seconds`, those before it is begun, for what others have there
    link: Link | None = None  # the way into this hop, where it is known
    name: str = ""  # the peer's public name
    precision: str = ""  # in which it computes

    @property
    def peer(self) -> PeerId:
        return self.contact.peer

    def __str__(self) -> str:
        return f"{self.span} @ {self.name or self.peer[-8:]}"

    def step(self, more: int) -> float:
        """Seconds of compute of a step that has `more` tokens than the decode step this hop was planned for."""
        return self.seconds + more * (self.seconds if self.token_seconds is None else self.token_seconds)

    def arrive(self, size: int) -> float:
        """Seconds for `size` bytes to get here from the hop before; 0 where the way is unknown."""
        return self.link.transfer(size) if self.link else 0.0


@dataclass(frozen=True, slots=True)
class Chain:
    """Hops that cover a span exactly once, in order."""

    hops: tuple[Hop, ...]
    seconds: float  # predicted latency of one decode step around the ring
    reason: str  # a sentence

    def __post_init__(self) -> None:
        cuts = [(a.span.end, b.span.start) for a, b in pairwise(self.hops)]
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


def step_seconds(hops: Iterable[Hop], *, tokens: int, rows: int, token_bytes: int) -> float:
    """Predicted seconds until a step of `tokens` tokens over `rows` rows, in one chunk, has left the last of `hops`.

    The hops may come from several plans, as after mending. Time limits are made of this.
    """
    return sum(hop.arrive(tokens * token_bytes) + hop.step(max(0, tokens - rows)) for hop in hops)


def piece_tokens(hops: Sequence[Hop], *, tokens: int, token_bytes: int, most: int) -> int:
    """In pieces of how many tokens, `most` at most, a prompt of `tokens` is predicted to be through the chain first.

    Each hop works on its own piece, so the slowest sets the pace, and the others add one piece each: small pieces fill
    the chain soon, large ones repeat less of what a step costs whatever its length.
    """
    if tokens <= PIECE:
        return PIECE
    return min(range(PIECE, most + 1, PIECE), key=lambda piece: (_in_pieces(hops, tokens, token_bytes, piece), -piece))


def _in_pieces(hops: Sequence[Hop], tokens: int, token_bytes: int, piece: int) -> float:
    """Seconds until the last of a prompt's pieces has left the last hop, beside what is waited for others: pieces that
    wait do so together."""
    size = min(piece, tokens)
    stages = [hop.step(size - 1) - hop.wait for hop in hops]
    stages += [size * token_bytes / hop.link.bandwidth for hop in hops if hop.link is not None]
    return sum(stages) + (-(-tokens // size) - 1) * max(stages)


def plan_chain(
    view: View,
    blocks: Span,
    *,
    links: Links,
    source: PeerId,
    sink: PeerId,
    avoid: Collection[PeerId] = frozenset(),
    rows: int = 1,
    tokens: int = 0,
    token_bytes: int,
    costs: Costs | None = None,
    salt: bytes = b"",
    like: Collection[str] = (),
    hosting: str | None = None,
    loads: Mapping[PeerId, Load] = MappingProxyType({}),
    dice: Random | None = None,
) -> Chain:
    """The chain over `blocks` with the least predicted latency of a decode step: source → hops → sink.

    No peer of `avoid` takes part, and none in another precision than those of `like`, if there are any, unless it is
    needed or very much faster. All host the adapter whose digest is `hosting`, if there is one. `rows` are in one
    step, `token_bytes` is a hidden state on the wire, `tokens` the KV that every hop must reserve. Among peers nearly
    as good `salt` decides: different clients choose differently, each one always the same. To mend a chain, `source`
    and `sink` are the living hops around the gap, which may fill it themselves. Raises MissingBlocks: its message
    tells blocks that nobody holds from those that avoided peers hold, or peers without the adapter.

    `loads`: what is known of peers' loads beyond their records. With `dice`, of peers that are alike two are looked at
    and load decides between them, the client's favourite and one at random, as in the power of two choices
    (Mitzenmacher, "How useful is old information?", IEEE TPDS 2000): who sees old figures must not run all at once to
    who was idle then.
    """
    costs = costs or Costs()
    peers = _candidates(view, blocks, avoid, hosting)
    able = len(peers)
    if dice is not None:
        ways = [links.between(source, r.peer).delay + links.between(r.peer, sink).delay for r in peers]
        idle = [
            Pace.of(record, costs, Load(0)).step(len(blocks), rows) + way
            for record, way in zip(peers, ways, strict=True)
        ]
        kinds = [(r.span, _burden(r, tokens, like, costs)) for r in peers]
        kept = pairs(kinds, idle, [_lot(salt, r.peer) for r in peers], alike=costs.alike, dice=dice)
        peers = [peers[i] for i in kept]
    paces = [Pace.of(record, costs, loads.get(record.peer)) for record in peers]
    spread = np.array([1 + costs.spread * _lot(salt, record.peer) for record in peers])
    fixed = spread * [pace.fixed for pace in paces] + [_burden(record, tokens, like, costs) for record in peers]
    size = rows * token_bytes
    field = Field(
        holds=_holds(peers, blocks),
        block=spread * [pace.step(1, rows) - pace.fixed for pace in paces],
        enter=spread * [links.between(source, record.peer).transfer(size) for record in peers] + fixed,
        leave=spread * [links.between(record.peer, sink).transfer(size) for record in peers],
        cross=Crossing(peers, links, size, spread, fixed),
    )
    legs = [
        (peers[i], paces[i], Span(blocks.start + start, blocks.start + end))
        for i, start, end in shortest_ring(field, costs.width)
    ]
    return _chain(legs, links, source, sink, rows, token_bytes, able)


def _burden(record: PeerRecord, tokens: int, like: Collection[str], costs: Costs) -> float:
    """What besides time speaks against a peer, in seconds."""
    other = bool(like) and record.precision not in like
    return costs.full * (record.cache_left < tokens) + costs.mixed * other


def _candidates(view: View, blocks: Span, avoid: Collection[PeerId], hosting: str | None) -> list[PeerRecord]:
    """Every peer that may compute some of `blocks`, by peer id; each block has one, or MissingBlocks."""
    found: dict[PeerId, PeerRecord] = {}
    nobody: list[int] = []
    plain: list[int] = []
    kept_out: list[int] = []
    failed: set[str] = set()
    for block in blocks:
        holders = view.holders(block)
        able = [record for record in holders if hosting is None or record.hosts(hosting)]
        usable = {record.peer: record for record in able if record.peer not in avoid}
        found |= usable
        if not usable:
            (kept_out if able else plain if holders else nobody).append(block)
            failed |= {_name(record) for record in able}
    if not nobody and not plain and not kept_out:
        return [found[peer] for peer in sorted(found)]
    sentences = []
    if nobody:
        sentences.append(f"no online peer holds {_named(nobody)}: wait for a peer to join, or serve them (swarm-serve)")
    if plain:
        sentences.append(f"no peer that holds {_named(plain)} hosts the adapter: load it yourself, or serve it")
    if kept_out:
        held = "held" if hosting is None else "held with the adapter"
        sentences.append(f"{_named(kept_out)} are {held} only by peers that failed lately: {', '.join(sorted(failed))}")
    raise MissingBlocks(sorted(nobody + plain + kept_out), "; ".join(sentences))


def _name(record: PeerRecord) -> str:
    return record.public_name or record.peer[-8:]


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
    stops = [source, *(record.peer for record, _, _ in legs), sink]
    *ways, back = (links.between(a, b) for a, b in pairwise(stops))
    hops = tuple(
        Hop(
            record.contact,
            span,
            pace.step(len(span), rows),
            len(span) * pace.token,
            pace.wait,
            way,
            _name(record),
            record.precision,
        )
        for (record, pace, span), way in zip(legs, ways, strict=True)
    )
    stages = [Stage(str(hop), way, hop.seconds) for hop, way in zip(hops, ways, strict=True)]
    found = predict(stages, back, rows=rows, token_bytes=token_bytes)
    reason = (
        f"the fastest known way among {candidates} peers: {_ms(found.latency)} a step, "
        f"of which {found.critical} takes {_ms(found.critical_seconds)}"
    )
    kinds = sorted({hop.precision for hop in hops})
    if len(kinds) > 1:
        reason += f"; its hops compute in {' and '.join(kinds)}"
    return Chain(hops, found.latency, reason)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
