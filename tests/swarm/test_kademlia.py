"""The DHT among hostile strangers, and the sentences with which joining it fails."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2PContext, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PHandlerError
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer

from swarm.errors import NetworkError, UsageError
from swarm.identity import Identity
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.messages import Contact
from swarm.record import PeerRecord
from swarm.sealing import MAX_LIFETIME, MAX_RECORD, seal, seal_presence
from tests.swarm.records import MODEL, OTHER_MODEL, presence_of, record_of

pytestmark = pytest.mark.anyio

ADA, BOB, EVE = Identity.ephemeral(), Identity.ephemeral(), Identity.ephemeral()
MODEL_KEY, INDEX_KEY = DHTID.generate(f"swarm/1/model/{MODEL}"), DHTID.generate("swarm/1/peers")
RUN = Identity.ephemeral()
RUN_KEY = DHTID.generate(f"swarm/1/run/{RUN.peer_id}")
FOREVER = 4e9  # Unix time, far away


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Swarm:
    """Two honest nodes, and the bare DHT node of Eve, which checks nothing and stores what she likes."""

    addresses: tuple[str, ...]
    ada: KademliaDirectory
    bob: KademliaDirectory
    eve: DHTNode

    async def offer(self, key: DHTID, subkey: Any, value: Any, expiration: float) -> list[bool]:
        """Eve asks both honest nodes to store something."""
        peers = [PeerID.from_base58(identity.peer_id) for identity in (ADA, BOB)]
        calls = [self.eve.protocol.call_store(peer, [key], [value], [expiration], subkeys=[subkey]) for peer in peers]
        return [answer[0] if answer else False for answer in await asyncio.gather(*calls)]


@pytest.fixture(scope="module")
async def swarm() -> AsyncIterator[Swarm]:
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(await Libp2pHost.start(ADA))]
        addresses = await hosts[0].transport.addresses()
        for identity in (BOB, EVE):
            host = await Libp2pHost.start(identity, initial_peers=addresses)
            hosts.append(await stack.enter_async_context(host))
        ada = await KademliaDirectory.start(hosts[0], ADA, new_swarm=True)
        bob = await KademliaDirectory.start(hosts[1], BOB, addresses)
        everyone = [*addresses, *await hosts[1].transport.addresses()]
        eve = await DHTNode.create(p2p=hosts[2].p2p, initial_peers=everyone)
        yield Swarm(addresses, ada, bob, eve)
        await eve.shutdown()
        await bob.close()
        await ada.close()


def packed(value: Any) -> bytes:
    return bytes(MSGPackSerializer.dumps(value))


def signed(content: dict[str, Any], identity: Identity) -> bytes:
    payload = msgpack.packb(content)
    return bytes(msgpack.packb([payload, identity.sign(b"swarm/1/record\0" + payload)]))


def content_of(record: PeerRecord) -> dict[str, Any]:
    payload, _ = msgpack.unpackb(seal(record, EVE if record.peer == EVE.peer_id else ADA))
    return dict(msgpack.unpackb(payload))


def honest() -> tuple[DHTID, Any, bytes, float]:
    record = record_of(EVE.peer_id)
    return MODEL_KEY, EVE.peer_id, packed(seal(record, EVE)), record.issued + MAX_LIFETIME


def forged() -> tuple[DHTID, Any, bytes, float]:
    record = record_of(ADA.peer_id, public_name="really Eve", issued=time.time() + 1)
    return MODEL_KEY, ADA.peer_id, packed(signed(content_of(record), EVE)), record.issued + MAX_LIFETIME


def foreign_subkey() -> tuple[DHTID, Any, bytes, float]:
    key, _, value, expiration = honest()
    return key, ADA.peer_id, value, expiration


def odd_subkey() -> tuple[DHTID, Any, bytes, float]:
    key, _, value, expiration = honest()
    return key, [EVE.peer_id], value, expiration


def unknown_key() -> tuple[DHTID, Any, bytes, float]:
    return DHTID.generate("swarm/1/anything"), *honest()[1:]


def key_of_another_model() -> tuple[DHTID, Any, bytes, float]:
    return DHTID.generate(f"swarm/1/model/{OTHER_MODEL}"), *honest()[1:]


def wiping() -> tuple[DHTID, Any, bytes, float]:
    return MODEL_KEY, None, honest()[2], FOREVER


def wiping_with_nothing() -> tuple[DHTID, Any, bytes, float]:
    return MODEL_KEY, None, b"", FOREVER


def over_long() -> tuple[DHTID, Any, bytes, float]:
    return *honest()[:3], FOREVER


def long_lived() -> tuple[DHTID, Any, bytes, float]:
    now = time.time()
    content = {**content_of(record_of(EVE.peer_id, issued=now)), "expires": now + MAX_LIFETIME + 1}
    return MODEL_KEY, EVE.peer_id, packed(signed(content, EVE)), now + MAX_LIFETIME


def from_the_future() -> tuple[DHTID, Any, bytes, float]:
    then = time.time() + 3600
    value = packed(seal(record_of(EVE.peer_id, issued=then, expires=then + 60), EVE))
    return MODEL_KEY, EVE.peer_id, value, then + MAX_LIFETIME


def oversized() -> tuple[DHTID, Any, bytes, float]:
    record = record_of(EVE.peer_id)
    content = {**content_of(record), "later": "x" * MAX_RECORD}
    return MODEL_KEY, EVE.peer_id, packed(signed(content, EVE)), record.issued + MAX_LIFETIME


def huge() -> tuple[DHTID, Any, bytes, float]:
    return MODEL_KEY, EVE.peer_id, packed(bytes(1 << 20)), honest()[3]


def no_record() -> tuple[DHTID, Any, bytes, float]:
    return MODEL_KEY, EVE.peer_id, packed({"peer": EVE.peer_id}), honest()[3]


def no_member() -> tuple[DHTID, Any, bytes, float]:
    """Eve knows the key under which members of a run meet, and not what they sign with."""
    presence = presence_of(EVE.peer_id, RUN.peer_id)
    payload, *_ = msgpack.unpackb(seal_presence(replace(presence, run=EVE.peer_id), EVE, EVE))
    content = {**msgpack.unpackb(payload), "run": RUN.peer_id}
    payload = msgpack.packb(content)
    signatures = [EVE.sign(b"swarm/1/presence\0" + payload)] * 2
    return RUN_KEY, EVE.peer_id, packed(msgpack.packb([payload, *signatures])), presence.issued + MAX_LIFETIME


def record_for_a_run() -> tuple[DHTID, Any, bytes, float]:
    return RUN_KEY, *honest()[1:]


def wiping_a_run() -> tuple[DHTID, Any, bytes, float]:
    return RUN_KEY, None, no_member()[2], FOREVER


def no_msgpack() -> tuple[DHTID, Any, bytes, float]:
    return MODEL_KEY, EVE.peer_id, b"\xc1\xff", honest()[3]


ATTACKS = [
    forged,
    foreign_subkey,
    odd_subkey,
    unknown_key,
    key_of_another_model,
    wiping,
    wiping_with_nothing,
    over_long,
    long_lived,
    from_the_future,
    oversized,
    huge,
    no_record,
    no_msgpack,
    no_member,
    record_for_a_run,
    wiping_a_run,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_honest_nodes_refuse(swarm: Swarm, attack: Callable[[], tuple[DHTID, Any, bytes, float]]) -> None:
    record, presence = record_of(ADA.peer_id), presence_of(ADA.peer_id, RUN.peer_id)
    await swarm.ada.announce(record)
    await swarm.ada.appear(presence, RUN)
    assert await swarm.offer(*attack()) == [False, False]
    for directory in (swarm.ada, swarm.bob):
        assert await directory.read(MODEL) == (record,)
        assert await directory.present(RUN.peer_id) == (presence,)


async def test_honest_nodes_take_an_honest_record(swarm: Swarm) -> None:
    """The same way of storing as in the attacks: they fail for their content alone."""
    other = DHTID.generate(f"swarm/1/model/{OTHER_MODEL}")
    record = record_of(EVE.peer_id, model=OTHER_MODEL)
    assert await swarm.offer(other, EVE.peer_id, packed(seal(record, EVE)), record.issued + MAX_LIFETIME) == [
        True,
        True,
    ]
    assert await swarm.bob.read(OTHER_MODEL) == (record,)


async def test_dictionary_with_a_forged_entry_is_refused(swarm: Swarm) -> None:
    record = record_of(ADA.peer_id)
    await swarm.ada.announce(record)
    dictionary = DictionaryDHTValue()
    for _, subkey, value, expiration in (honest(), forged()):
        dictionary.store(subkey, value, expiration)
    assert await swarm.offer(MODEL_KEY, None, dictionary, FOREVER) == [False, False]
    assert await swarm.bob.read(MODEL) == (record,)


async def test_old_record_sent_again_does_not_come_back(swarm: Swarm) -> None:
    now = time.time()
    old = record_of(ADA.peer_id, issued=now - 10)
    new = record_of(ADA.peer_id, issued=now)
    await swarm.ada.announce(new)
    value = packed(seal(old, ADA))
    for expiration in (old.issued + MAX_LIFETIME, new.issued + MAX_LIFETIME, FOREVER):
        assert await swarm.offer(MODEL_KEY, ADA.peer_id, value, expiration) == [False, False]
    assert await swarm.bob.read(MODEL) == (new,)


async def test_nobody_puts_a_record_of_their_own_before_all_others(swarm: Swarm) -> None:
    """What nodes cache for each other they would answer with, if it ends later than what they keep."""
    record, late = record_of(ADA.peer_id), record_of(EVE.peer_id, issued=time.time() + 2)
    await swarm.ada.announce(record)
    dictionary = DictionaryDHTValue()
    dictionary.store(EVE.peer_id, packed(seal(late, EVE)), late.issued + MAX_LIFETIME)
    peers = [PeerID.from_base58(identity.peer_id) for identity in (ADA, BOB)]
    for peer in peers:
        call = swarm.eve.protocol.call_store(peer, [MODEL_KEY], [dictionary], [FOREVER], in_cache=True)
        assert await call == [False]
    assert record in await swarm.bob.read(MODEL)


async def test_a_dictionary_that_makes_room_for_millions_is_refused_at_once(swarm: Swarm) -> None:
    record = record_of(ADA.peer_id)
    await swarm.ada.announce(record)
    nested = b"\xdd\x00\x0f\x00\x00" * 500 + bytes(1 << 20)
    hostile = msgpack.packb(msgpack.ExtType(0x50, nested))
    request = dht_pb2.StoreRequest(
        keys=[MODEL_KEY.to_bytes()],
        subkeys=[swarm.eve.protocol.IS_DICTIONARY],
        values=[hostile],
        expiration_time=[FOREVER],
        in_cache=[False],
    )
    stub = swarm.eve.protocol.get_stub(PeerID.from_base58(ADA.peer_id))
    with pytest.raises(P2PHandlerError, match="max_array_len"):
        await stub.rpc_store(request)
    assert await swarm.ada.read(MODEL) == (record,)


def plain(eve: DHTNode, key: DHTID) -> None:
    eve.protocol.storage.store(key, packed(b"nothing"), FOREVER)


def forgeries(eve: DHTNode, key: DHTID) -> None:
    for _, subkey, value, _ in (forged(), foreign_subkey(), huge(), no_msgpack(), no_member()):
        eve.protocol.storage.store_subkey(key, subkey, value, FOREVER)


def empty(eve: DHTNode, key: DHTID) -> None:
    eve.protocol.storage.store(key, DictionaryDHTValue(), FOREVER)


def malformed(eve: DHTNode, key: DHTID) -> None:
    dictionary = DictionaryDHTValue()
    dictionary.store(("a", 1), packed([[[1]]]), FOREVER)
    eve.protocol.storage.store(key, dictionary, FOREVER)


@pytest.mark.parametrize("lie", [plain, forgeries, empty, malformed])
async def test_hostile_node_hides_and_forges_nothing(swarm: Swarm, lie: Callable[[DHTNode, DHTID], None]) -> None:
    record, presence = record_of(ADA.peer_id), presence_of(ADA.peer_id, RUN.peer_id)
    await swarm.ada.announce(record)
    await swarm.ada.appear(presence, RUN)
    for key in (MODEL_KEY, INDEX_KEY, RUN_KEY):
        del swarm.eve.protocol.storage[key]
        lie(swarm.eve, key)
    for directory in (swarm.ada, swarm.bob):
        assert await directory.present(RUN.peer_id) == (presence,)
    for model in (MODEL, None):
        for directory in (swarm.ada, swarm.bob):
            read = await directory.read(model)
            assert [known for known in read if known.peer == ADA.peer_id] == [record]
    for key in (MODEL_KEY, INDEX_KEY, RUN_KEY):
        del swarm.eve.protocol.storage[key]


async def test_joining_nothing_is_a_matter_of_options(swarm: Swarm) -> None:
    with pytest.raises(UsageError, match="--new-swarm"):
        await KademliaDirectory.start(swarm.ada._host, ADA)


async def test_dead_initial_peers_are_named(swarm: Swarm) -> None:
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.ephemeral().peer_id}"
    async with await Libp2pHost.start(identity := Identity.ephemeral()) as host:
        with pytest.raises(NetworkError, match=f"none of the initial peers answered: {dead}; check that they run"):
            await KademliaDirectory.start(host, identity, [dead])


async def test_one_of_several_initial_peers_is_enough(swarm: Swarm) -> None:
    peers = [f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.ephemeral().peer_id}", *swarm.addresses]
    record = record_of(ADA.peer_id)
    await swarm.ada.announce(record)
    async with await Libp2pHost.start(identity := Identity.ephemeral(), initial_peers=peers, client=True) as host:
        directory = await KademliaDirectory.start(host, identity, peers, client_mode=True)
        assert record in await directory.read(MODEL)
        await directory.close()


async def test_clock_that_is_off_is_said_in_words() -> None:
    async def ping(_: dht_pb2.PingRequest, __: P2PContext) -> dht_pb2.PingResponse:
        node = dht_pb2.NodeInfo(node_id=DHTID.generate().to_bytes())
        return dht_pb2.PingResponse(peer=node, dht_time=time.time() + 10, available=True)

    async with await Libp2pHost.start(Identity.ephemeral()) as other:
        await other.p2p.add_protobuf_handler("DHTProtocol.rpc_ping", ping, dht_pb2.PingRequest)
        addresses = await other.transport.addresses()
        async with await Libp2pHost.start(identity := Identity.ephemeral(), initial_peers=addresses) as host:
            with pytest.raises(NetworkError, match="the clock of this machine differs by more than 3 s"):
                await KademliaDirectory.start(host, identity, addresses)


async def test_directory_says_that_its_daemon_is_gone() -> None:
    async with await Libp2pHost.start(identity := Identity.ephemeral()) as host:
        directory = await KademliaDirectory.start(host, identity, new_swarm=True)
        host.p2p._child.kill()
        await host.p2p._child.wait()
        async with asyncio.timeout(2):
            with pytest.raises(NetworkError, match="daemon"):
                await directory.read()
            with pytest.raises(NetworkError, match="daemon"):
                await directory.announce(record_of(identity.peer_id))
            await directory.close()


async def test_records_survive_the_node_that_announced_them(swarm: Swarm) -> None:
    async with await Libp2pHost.start(identity := Identity.ephemeral(), initial_peers=swarm.addresses) as host:
        directory = await KademliaDirectory.start(host, identity, swarm.addresses)
        record = replace(record_of(identity.peer_id), model=OTHER_MODEL)
        await directory.announce(record)
        await directory.close()
    assert record in await swarm.bob.read(OTHER_MODEL)


async def node(stack: AsyncExitStack, addresses: Sequence[str]) -> tuple[Identity, KademliaDirectory, tuple[str, ...]]:
    """One more, that joins through `addresses` or begins a swarm."""
    identity = Identity.ephemeral()
    host = await stack.enter_async_context(await Libp2pHost.start(identity, initial_peers=addresses))
    directory = await KademliaDirectory.start(host, identity, addresses, new_swarm=not addresses)
    stack.push_async_callback(directory.close)
    return identity, directory, await host.transport.addresses()


async def test_a_swarm_goes_on_without_the_peers_it_began_with() -> None:
    async with AsyncExitStack() as stack, AsyncExitStack() as first:
        _, _, addresses = await node(first, ())
        ada, adas, way_to_ada = await node(stack, addresses)
        _, bobs, _ = await node(stack, addresses)
        await first.aclose()
        record = record_of(ada.peer_id)
        await adas.announce(record)
        assert record in await bobs.read(MODEL)
        with pytest.raises(NetworkError, match="initial peers"):
            await node(stack, addresses)
        _, late, _ = await node(stack, way_to_ada)
        assert record in await late.read(MODEL)


async def test_two_halves_that_know_of_each_other_become_one() -> None:
    async with AsyncExitStack() as stack:
        ada, adas, addresses = await node(stack, ())
        bob, bobs, _ = await node(stack, ())
        records = record_of(ada.peer_id), record_of(bob.peer_id)
        await adas.announce(records[0])
        await bobs.announce(records[1])
        assert await bobs.read(MODEL) == (records[1],)
        bobs.acquaintances.saw(Contact(ada.peer_id, addresses))
        assert await bobs.touch() == 1
        assert set(await bobs.read(MODEL)) == set(records)
        assert set(await adas.read(MODEL)) == set(records)
        assert bobs.clock_trouble is None
        assert await bobs.touch() == 0, "nobody is lost any more"


async def test_a_clock_that_goes_wrong_while_a_node_runs_is_said_in_words(caplog: pytest.LogCaptureFixture) -> None:
    async def ping(_: dht_pb2.PingRequest, __: P2PContext) -> dht_pb2.PingResponse:
        return dht_pb2.PingResponse(peer=dht_pb2.NodeInfo(node_id=other_id), dht_time=time.time() + 10800)

    other_id = DHTID.generate().to_bytes()
    async with AsyncExitStack() as stack:
        _, adas, _ = await node(stack, ())
        other = await stack.enter_async_context(await Libp2pHost.start(Identity.ephemeral()))
        await other.p2p.add_protobuf_handler("DHTProtocol.rpc_ping", ping, dht_pb2.PingRequest)
        adas.acquaintances.saw(Contact(other.peer_id, await other.transport.addresses()))
        await adas.touch()
        assert "3.0 hours behind" in caplog.text
        key, late = MODEL_KEY, record_of(BOB.peer_id, issued=time.time() + 10800, expires=time.time() + 10860)
        adas._node.protocol.storage.store_subkey(key, BOB.peer_id, packed(seal(late, BOB)), FOREVER)
        with pytest.raises(NetworkError, match=r"3\.0 hours behind .* set it right"):
            await adas.read(MODEL)
