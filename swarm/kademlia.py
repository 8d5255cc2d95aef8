"""The real directory: hivemind's Kademlia DHT, in this process' own event loop, over the same libp2p host.

A node forgets a neighbour that does not answer once, and never asks again; so two halves of a network that was parted
would stay two swarms. Here each node now and then looks for those it has known (`touch`).

A record lies under two keys, its model's and an index of all, with its peer id as the subkey; a presence
under its run's key alone. Every node checks what it is asked to keep (`Guard`); every reader checks again, entry by
entry, whatever the nodes it asked have answered.

The DHT keeps the value whose expiration is later. So what we give it as expiration is not when the record expires but
`issued + MAX_LIFETIME`: what was issued later wins, also when it expires earlier, as a peer's farewell does.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice, zip_longest
from typing import Self, TypeVar

import msgpack
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import DHTProtocol, ValidationError
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, P2PHandlerError
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer

from swarm.acquaintances import Acquaintances
from swarm.addresses import peer_of
from swarm.authorizer import Authorizer
from swarm.clocks import CLOCK_LIMIT, clock_trouble
from swarm.directory import Directory
from swarm.door import Door, knock
from swarm.errors import NetworkError, ProtocolError, RecordError, UsageError, WireError
from swarm.identity import Identity
from swarm.ids import Digest, PeerId
from swarm.invites import MAX_PASS, Role
from swarm.libp2p import Libp2pHost
from swarm.messages import Contact
from swarm.passing import pass_time
from swarm.record import Announced, PeerRecord, Presence
from swarm.sealing import (
    MAX_LIFETIME,
    MAX_RECORD,
    check_live,
    check_times,
    open_presence,
    open_sealed,
    seal,
    seal_presence,
)
from swarm.shelves import NoCache, PlainSerializer, Shelves, items_in
from swarm.turnstile import Turnstile
from swarm.unpacking import unpack

__all__ = ["CLOCK_LIMIT", "Guard", "KademliaDirectory", "clock_offset"]

TOUCH_SECONDS = 30.0  # between looks for peers that were known, and are not among a node's neighbours any more

A = TypeVar("A", PeerRecord, Presence)

_log = logging.getLogger(__name__)

_INDEX = "swarm/1/peers"
_REPLICAS = 5  # nodes that keep each key
_MAX_ENTRIES = 4096  # of one node's answer that are looked at
_MAX_FOUND = 8192  # of all answers, as many of each
_MAX_OPENED = 32_768  # whose signatures are remembered, good or not
_AT_A_TIME = 32  # signatures that are checked before others have a turn
_MAX_VALUE = MAX_RECORD + MAX_PASS + 32  # bytes of a sealed record, and perhaps a pass, in hivemind's packing
_GREETINGS = 3  # peers that are looked for at a time, and asked for the time of day
_PARALLEL = 64  # calls to other nodes at once
_QUESTIONS = 20.0  # a second that one peer is answered; who takes part asks a few at a time, and then rests
_AT_ONCE = 100.0
_WAITING = 32  # of one peer that wait for an answer

UnaryHandler = Callable[[bytes, PeerID], Awaitable[bytes]]


def _key(model: Digest | None) -> str:
    return _INDEX if model is None else f"swarm/1/model/{model}"


def _run_key(run: PeerId) -> str:
    return f"swarm/1/run/{run}"


def _keys(record: Announced) -> list[DHTID]:
    names = [_run_key(record.run)] if isinstance(record, Presence) else [_key(record.model), _key(None)]
    return [DHTID.generate(name) for name in names]


def _opened(sealed: bytes) -> Announced | RecordError:
    """What is wrong with it is remembered as well: who sends nonsense sends it again."""
    try:
        return open_sealed(sealed)
    except RecordError:
        try:
            return open_presence(sealed)
        except RecordError as error:
            return RecordError(str(error))


def _parts(value: bytes) -> tuple[bytes, bytes]:
    """A sealed record and a pass. Raises RecordError."""
    try:
        sealed, shown = unpack(value)
    except (ValueError, TypeError) as error:
        raise RecordError(f"this is no record with a pass: {error}") from error
    if not (isinstance(sealed, bytes) and isinstance(shown, bytes)):
        raise RecordError("a record with a pass is a pair of bytes")
    return sealed, shown


class Guard(RecordValidatorBase):  # type: ignore[misc]  # hivemind is untyped
    """What a node may keep: a sealed record, under the keys that follow from it, in the name of who signed it.

    hivemind gives us keys as hashes, subkeys and values in its own msgpack; a plain value (which would wipe a key) has
    a reserved subkey, which is no peer id. A record that has just expired passes: hivemind asks again about values it
    has long kept, and drops all of a key for one refusal; of what is too old it takes care by itself."""

    def __init__(self, door: Door | None = None) -> None:
        self._seen = lru_cache(maxsize=_MAX_OPENED)(_opened)  # the same records pass here again and again
        self._door = door

    def open(self, value: bytes) -> Announced:
        """What was sealed; in a private swarm with the pass of who announces it, who has to have the right to that.
        Raises RecordError, AccessError."""
        if self._door is None:
            return self._opened(value)
        sealed, shown = _parts(value)
        announced = self._opened(sealed)
        role = Role.USE if isinstance(announced, Presence) else Role.SERVE
        self._door.admit(announced.peer, shown, role)
        return announced

    def _opened(self, sealed: bytes) -> Announced:
        if len(sealed) > MAX_RECORD:
            raise RecordError(f"a record has at most {MAX_RECORD} bytes")  # and is not remembered
        found = self._seen(sealed)
        if isinstance(found, RecordError):
            raise RecordError(str(found))
        return found

    def value(self, sealed: bytes) -> bytes:
        """What `open` reads, for a record of our own."""
        if self._door is None:
            return sealed
        packed: bytes = msgpack.packb([sealed, self._door.own])
        return packed

    def validate(self, record: DHTRecord) -> bool:
        if len(record.value) > _MAX_VALUE or len(record.subkey) > _MAX_VALUE:
            return False
        try:
            sealed = unpack(record.value)
            if not isinstance(sealed, bytes):
                return False
            announced = self.open(sealed)
            check_times(announced, time.time())
        except (ValueError, ProtocolError):
            return False
        return (
            record.subkey == MSGPackSerializer.dumps(announced.peer)
            and record.key in [key.to_bytes() for key in _keys(announced)]
            and record.expiration_time == announced.issued + MAX_LIFETIME
        )


class KademliaDirectory(Directory):
    """Made by `start`. `limit`: seconds for one announcing or reading."""

    def __init__(
        self,
        host: Libp2pHost,
        identity: Identity,
        node: DHTNode,
        guard: Guard,
        limit: float,
        acquaintances: Acquaintances,
    ) -> None:
        self.closed = False
        self.acquaintances = acquaintances
        self.clock_trouble: str | None = None  # what was wrong with this machine's clock when others were last asked
        self._host = host
        self._identity = identity
        self._node = node
        self._guard = guard
        self._limit = limit
        self._touching = asyncio.create_task(self._keep_in_touch(), name="keeping in touch")

    @classmethod
    async def start(
        cls,
        host: Libp2pHost,
        identity: Identity,
        initial_peers: Sequence[str] = (),
        *,
        client_mode: bool = False,
        new_swarm: bool = False,
        call_timeout: float = 3.0,
        limit: float = 20.0,
        acquaintances: Acquaintances | None = None,
    ) -> Self:
        """Join the DHT through `initial_peers` (multiaddresses, one of which has to answer), or begin a new one.
        `acquaintances`: where to note who is met, by default in memory alone.

        `client_mode`: read, and keep nothing for others. `call_timeout`: seconds that one node gets for an answer.
        Raises NetworkError when nobody answers, can reach us back, or shares our idea of time, AccessError when a
        private swarm turns us away."""
        if not initial_peers and not new_swarm:
            raise UsageError("there is no swarm to join: give --initial-peers, or --new-swarm to begin one")
        for address in initial_peers:
            peer_of(address)
        guard = Guard(host.door)
        join = DHTNode.create(
            p2p=host.p2p,
            initial_peers=list(initial_peers),
            num_replicas=_REPLICAS,
            wait_timeout=call_timeout,
            parallel_rpc=_PARALLEL,
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
            client_mode=client_mode,
            record_validator=guard,
            authorizer=None if host.door is None else Authorizer(host.door, identity),
        )
        try:
            node = await host.run(join, limit, "joining the DHT")
        except (RuntimeError, ValidationError, P2PDaemonError) as error:
            await _ask_at_doors(host, initial_peers)
            raise _join_error(str(error), initial_peers) from error
        node.protocol.storage, node.protocol.cache = Shelves(), NoCache()
        node.protocol.serializer = PlainSerializer
        _limit_questions(host)
        return cls(host, identity, node, guard, limit, acquaintances or Acquaintances(initial_peers))

    async def announce(self, record: PeerRecord) -> None:
        await self._put(record, seal(record, self._identity))

    async def appear(self, presence: Presence, run: Identity) -> None:
        await self._put(presence, seal_presence(presence, self._identity, run))

    async def read(self, model: Digest | None = None) -> tuple[PeerRecord, ...]:
        found = await self._found(_key(model))
        live = _newest(r for r in found if isinstance(r, PeerRecord) and model in (None, r.model))
        for record in live:
            if record.peer != self._identity.peer_id:
                self.acquaintances.saw(record.contact)
        return live

    async def present(self, run: PeerId) -> tuple[Presence, ...]:
        found = await self._found(_run_key(run))
        return _newest(r for r in found if isinstance(r, Presence) and r.run == run)

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._touching.cancel()
        with suppress(asyncio.CancelledError):
            await self._touching
        self.acquaintances.save()
        if self._host.alive:
            await self._host.run(self._node.shutdown(), self._limit, "leaving the DHT")

    async def _put(self, record: Announced, sealed: bytes) -> None:
        self._check_open()
        check_live(record, time.time())
        storing = asyncio.gather(*(self._store(key, record, self._guard.value(sealed)) for key in _keys(record)))
        taken = await self._host.run(storing, self._limit, "announcing")
        if not all(taken) and not await self._is_known(record):
            await self._compare_clocks()
            why = self.clock_trouble or "is this machine's clock right?"
            raise NetworkError(f"no node of the DHT took the record of {record.peer}; {why}")

    async def _is_known(self, record: Announced) -> bool:
        """Whether the DHT has it all the same: no node takes a record twice, nor one older than what it has."""
        known: Sequence[Announced]
        if isinstance(record, Presence):
            known = await self.present(record.run)
        else:
            known = await self.read(record.model)
        return any(other.peer == record.peer and other.issued >= record.issued for other in known)

    async def _nearest(self, key: DHTID) -> list[PeerID]:
        """The nodes that keep `key`. We look for a neighbour of the key that nobody uses: otherwise every node on the
        way would send us all it has under it."""
        neighbour = DHTID(int(key) ^ 1)
        reader = self._node.protocol.client_mode
        nodes = await self._node.find_nearest_nodes([neighbour], k_nearest=2 * _REPLICAS, exclude_self=reader)
        return [peer for peer in nodes[neighbour].values() if peer not in self._node.blacklist][:_REPLICAS]

    async def _store(self, key: DHTID, record: Announced, sealed: bytes) -> bool:
        """Ask each of the nearest nodes, ourselves perhaps among them, to keep it; whether any did."""
        value, expiration = MSGPackSerializer.dumps(sealed), record.issued + MAX_LIFETIME
        protocol = self._node.protocol
        nearest = await self._nearest(key)
        others = [peer for peer in nearest if peer != self._node.peer_id]
        calls = [protocol.call_store(peer, [key], [value], [expiration], subkeys=[record.peer]) for peer in others]
        taken = any(answer and answer[0] for answer in await asyncio.gather(*calls))
        if len(others) < len(nearest):
            taken |= protocol.storage.store_subkey(key, record.peer, value, expiration)
        return taken

    async def _found(self, name: str) -> list[Announced]:
        """All good records under a key, some of them old."""
        self._check_open()
        sealed = await self._host.run(self._sealed(DHTID.generate(name)), self._limit, "reading the DHT")
        now, found = time.time(), []
        for count, data in enumerate(sealed):
            if count % _AT_A_TIME == 0:
                await asyncio.sleep(0)  # thousands of signatures take seconds
            try:
                record = self._guard.open(data)
                check_times(record, now)
            except ProtocolError:
                continue
            found.append(record)
        if sealed and not any(record.expires > now for record in found):
            await self._compare_clocks()
            if self.clock_trouble is not None:
                raise NetworkError(self.clock_trouble)
        return found

    # --- keeping in touch ---

    async def _keep_in_touch(self) -> None:
        while True:
            await pass_time(TOUCH_SECONDS * (0.5 + random.random() / 2))  # not all at once
            with suppress(NetworkError):  # whoever reads or announces hears of it
                await self.touch()
                self.acquaintances.save()

    async def touch(self) -> int:
        """Look for a few of those who were known and are not among our neighbours now, and see whether our clock is
        right; how many were found. Raises NetworkError when the daemon has gone."""
        self._check_open()
        lost = [one for one in self.acquaintances.contacts() if not self._is_neighbour(one.peer)]
        tried = random.sample(lost, min(_GREETINGS, len(lost)))
        met = await self._host.run(asyncio.gather(*map(self._meet, tried)), self._limit, "looking for peers")
        await self._compare_clocks()
        return sum(met)

    def _is_neighbour(self, peer: PeerId) -> bool:
        own = peer == self._identity.peer_id
        return own or self._node.protocol.routing_table.get(peer_id=PeerID.from_base58(peer)) is not None

    async def _meet(self, contact: Contact) -> bool:
        try:
            await self._host.open_transport.dial(contact.peer, contact.addresses)
        except NetworkError:
            return False
        return await self._greet(PeerID.from_base58(contact.peer)) is not None

    async def _compare_clocks(self) -> None:
        """Ask a few neighbours what time it is; what follows is said in the log when it is news."""
        neighbours = [peer for _, peer in self._neighbours()]
        asked = random.sample(neighbours, min(_GREETINGS, len(neighbours)))
        if not asked:
            return
        call = asyncio.gather(*map(self._greet, asked))
        answers = await self._host.run(call, self._limit, "asking for the time")
        before, self.clock_trouble = self.clock_trouble, clock_trouble([one for one in answers if one is not None])
        if self.clock_trouble is not None and before is None:
            _log.warning("%s", self.clock_trouble)
        elif self.clock_trouble is None and before is not None:
            _log.info("this machine's clock is right again")

    def _neighbours(self) -> list[tuple[DHTID, PeerID]]:
        table = self._node.protocol.routing_table
        found: list[tuple[DHTID, PeerID]] = table.get_nearest_neighbors(self._node.node_id, 4 * _REPLICAS)
        return [(node, peer) for node, peer in found if peer != self._node.peer_id]

    async def _greet(self, peer: PeerID) -> float | None:
        """Make `peer` a neighbour, and us one of its; the seconds by which its clock is ahead. None: no answer."""
        protocol = self._node.protocol
        request = dht_pb2.PingRequest(peer=protocol.node_info, validate=False)
        asked = time.time()
        try:
            async with protocol.rpc_semaphore:
                response = await protocol.get_stub(peer).rpc_ping(request, timeout=protocol.wait_timeout)
        except (TimeoutError, OSError, EOFError, P2PDaemonError, P2PHandlerError):
            return None
        if response is None or len(response.peer.node_id) != DHTID.HASH_NBYTES:  # a private swarm turns us away
            return None
        await protocol.update_routing_table(DHTID.from_bytes(response.peer.node_id), peer)
        self._node.blacklist.register_success(peer)
        return float(response.dht_time) - (asked + time.time()) / 2 if response.dht_time else 0.0

    async def _sealed(self, key: DHTID) -> list[bytes]:
        """All that the nodes nearest to the key have under it. `DHTNode.get` would do with the answer of whichever
        node claims the latest expiration, and throws away an answer for one bad entry in it: both let a single hostile
        node, or record, hide all others."""
        others = [peer for peer in await self._nearest(key) if peer != self._node.peer_id]
        answers = await asyncio.gather(*(self._ask(peer, key) for peer in others))
        own = self._node.protocol.storage.get(key)
        kept = [] if own is None else _entries(MSGPackSerializer.dumps(own.value))
        return _in_turn([kept, *answers])

    async def _ask(self, peer: PeerID, key: DHTID) -> list[bytes]:
        """The sealed records that `peer` has under `key`; none if it does not answer in time, or not sensibly."""
        protocol = self._node.protocol
        request = dht_pb2.FindRequest(keys=[key.to_bytes()], peer=protocol.node_info)
        try:
            async with protocol.rpc_semaphore:
                response = await protocol.get_stub(peer).rpc_find(request, timeout=protocol.wait_timeout)
        except (TimeoutError, OSError, P2PDaemonError, P2PHandlerError):
            return []
        return [entry for result in response.results[:1] for entry in _entries(result.value)]

    def _check_open(self) -> None:
        if self.closed:
            raise NetworkError("the directory is closed")
        self._host.check_alive()


def _limit_questions(host: Libp2pHost) -> None:
    """Nobody is answered more often than it takes to take part."""
    turnstile, handlers = Turnstile(_QUESTIONS, _AT_ONCE, _WAITING), host.p2p._client.control.unary_handlers
    for name, handler in handlers.items():
        handlers[name] = _behind(turnstile, handler)


def _behind(turnstile: Turnstile, handler: UnaryHandler) -> UnaryHandler:
    async def answer(data: bytes, peer: PeerID) -> bytes:
        await turnstile.enter(PeerId(peer.to_base58()))
        return await handler(data, peer)

    return answer


async def clock_offset(host: Libp2pHost, peer: PeerId, limit: float) -> float:
    """Seconds by which the clock of `peer`, which has been dialled, is ahead of ours, right to half of a round trip.
    Raises NetworkError where it does not answer, or says no time."""
    # the class's own method of that name is for one that has joined, which a wrong clock keeps us from
    stub = super(DHTProtocol, DHTProtocol).get_stub(host.p2p, PeerID.from_base58(peer))
    asked = time.time()
    try:
        call = stub.rpc_ping(dht_pb2.PingRequest(validate=False), timeout=limit)
        response = await host.run(call, limit, "asking for the time")
    except (TimeoutError, OSError, P2PDaemonError, P2PHandlerError) as error:
        raise NetworkError(f"peer {peer} did not say what time it is") from error
    if not response.dht_time:
        raise NetworkError(f"peer {peer} did not say what time it is")
    return float(response.dht_time) - (asked + time.time()) / 2


def _newest(found: Iterable[A]) -> tuple[A, ...]:
    """Of each peer, where that has not expired; in the order of their ids."""
    newest = {record.peer: record for record in sorted(found, key=lambda record: record.issued)}
    now = time.time()
    return tuple(record for _, record in sorted(newest.items()) if record.expires > now)


def _in_turn(answers: Sequence[Sequence[bytes]]) -> list[bytes]:
    """One of each answer after the other, so that no node can crowd out what the others say; each once."""
    turns = (entry for turn in zip_longest(*answers) for entry in turn if entry is not None)
    return list(islice(dict.fromkeys(turns), _MAX_FOUND))


def _entries(answer: bytes) -> list[bytes]:
    """The values in a stranger's packed dictionary; nothing where it is none."""
    try:
        items = items_in(answer, _MAX_ENTRIES) or ()
        values = [unpack(value) for _, value, _ in items]
    except ValueError:
        return []
    return [value for value in values if isinstance(value, bytes)]


async def _ask_at_doors(host: Libp2pHost, peers: Sequence[str]) -> None:
    """Whether these would not have us. Raises AccessError, with the reason, if one says so."""
    for address in peers:
        with suppress(NetworkError, WireError):
            await knock(host.open_transport, peer_of(address), [address], host.door)


def _join_error(message: str, initial_peers: Sequence[str]) -> NetworkError:
    if "local time must be within" in message:
        return NetworkError(
            f"the clock of this machine differs by more than {CLOCK_LIMIT:g} s from that of the initial peers; "
            f"set it right, for example with NTP, and start again ({' '.join(message.split())})"
        )
    if "can't access this node" in message:
        advice = "give --host and --port that they can reach, and --announce if that is behind a router"
        return NetworkError(f"the initial peers can't reach this machine back; {advice}")
    advice = "check that they run and are of this network, or ask for a newer address"
    return NetworkError(f"none of the initial peers answered: {', '.join(initial_peers)}; {advice}")
