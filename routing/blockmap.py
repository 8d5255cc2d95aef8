"""The block map: a view as plain values, a row a block and a row a peer, for `swarm status` to draw."""

from collections.abc import Iterable
from dataclasses import dataclass

from routing.placement import block_rates
from routing.view import View, runs
from swarm.entrance import is_relayed
from swarm.ids import Digest, PeerId, Span
from swarm.record import PeerRecord, PeerState

__all__ = ["BlockMap", "BlockRow", "PeerRow", "block_map"]


@dataclass(frozen=True, slots=True)
class BlockRow:
    block: int
    online: tuple[PeerId, ...]
    joining: tuple[PeerId, ...]
    throughput: float  # rows per second, of online peers
    weakest: bool

    @property
    def replication(self) -> int:
        return len(self.online)


@dataclass(frozen=True, slots=True)
class PeerRow:
    peer: PeerId
    name: str
    addresses: tuple[str, ...]
    relayed: bool
    span: Span
    state: PeerState
    throughput: float  # rows per second through the span
    prefill: float  # prompt tokens per second through the span
    cache_left: int  # tokens
    queue: int  # tokens
    precision: str
    version: str
    reason: str
    age: float  # s since it was announced
    trains: bool
    adapters: tuple[tuple[str, str], ...]  # that it hosts: names and digests


@dataclass(frozen=True, slots=True)
class BlockMap:
    model: Digest
    name: str
    blocks: tuple[BlockRow, ...]
    peers: tuple[PeerRow, ...]  # by first block, then by id
    missing: tuple[Span, ...]
    weakest: tuple[Span, ...]  # the blocks of least throughput
    throughput: float  # rows per second of the weakest block: what the whole swarm can do
    replication: int  # peers that must leave before a block is missing


def block_map(view: View, *, offline: Iterable[PeerRecord] = ()) -> BlockMap:
    """The map of `view`; peers that said they went `offline` are listed too and hold nothing."""
    rates = block_rates(view, states=(PeerState.ONLINE,))
    least = min(rates)
    joining = [record for record in view.peers if record.state is PeerState.JOINING]
    blocks = tuple(
        BlockRow(
            block,
            tuple(record.peer for record in view.holders(block)),
            tuple(record.peer for record in joining if block in record.span),
            rate,
            rate == least,
        )
        for block, rate in enumerate(rates)
    )
    records = sorted([*view.peers, *offline], key=lambda record: (record.span, record.peer))
    return BlockMap(
        model=view.model,
        name=records[0].model_name if records else "",
        blocks=blocks,
        peers=tuple(_peer_row(record, view.taken) for record in records),
        missing=runs(row.block for row in blocks if not row.online),
        weakest=runs(row.block for row in blocks if row.weakest),
        throughput=least,
        replication=min(row.replication for row in blocks),
    )


def _peer_row(record: PeerRecord, now: float) -> PeerRow:
    return PeerRow(
        peer=record.peer,
        name=record.public_name,
        addresses=record.contact.addresses,
        relayed=is_relayed(record.contact.addresses),
        span=record.span,
        state=record.state,
        throughput=record.throughput,
        prefill=record.prefill,
        cache_left=record.cache_left,
        queue=record.queue,
        precision=record.precision,
        version=record.version,
        reason=record.reason,
        age=max(0.0, now - record.issued),
        trains=record.trains,
        adapters=record.adapters,
    )
