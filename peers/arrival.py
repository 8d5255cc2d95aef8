"""A peer's arrival on the network: others can dial it, or it is reached through relays; which of these, it asks."""

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from peers.settings import ServeSettings
from swarm.addresses import listen_address
from swarm.door import Door
from swarm.echo import serve_echo
from swarm.entrance import is_relayed
from swarm.errors import NetworkError, SwarmError
from swarm.identity import Identity
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.reach import ask_reach, relay_address, serve_reach
from swarm.record import PeerRecord, PeerState

__all__ = ["arrive"]

MOST_RELAYS = 8  # that libp2p may choose among; it keeps two
GLANCE_SECONDS = 0.1
RESERVE_SECONDS = 30.0  # for the first relay to agree

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Way:
    """`port` to listen at; `also`: where others have reached it; `relays`: who can't be dialled needs them."""

    port: int
    also: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()


async def arrive(settings: ServeSettings, identity: Identity, port: int, door: Door | None = None) -> Libp2pHost:
    """A host that others can reach, one way or the other, at `port` or any for 0; `door`: of the private swarm it is
    for. Raises NetworkError, AccessError."""
    way = await _find_way(settings, port)
    host = await Libp2pHost.start(
        identity,
        host=settings.host,
        port=way.port,
        announce=settings.announce,
        also=way.also,
        relays=way.relays,
        door=door,
        initial_peers=settings.initial_peers,
    )
    try:
        await serve_reach(host)
        await serve_echo(host.transport)
        if way.relays:
            await _reserve(host)
    except BaseException:
        await host.close()
        raise
    return host


async def _find_way(settings: ServeSettings, port: int) -> _Way:
    local = ipaddress.ip_address(settings.host).is_loopback
    if settings.reach == "direct" or (settings.reach == "auto" and (local or settings.announce)):
        return _Way(port)  # nobody needs to be asked
    if not settings.initial_peers:
        if settings.reach == "relayed":
            raise NetworkError("a swarm can't begin with a peer that is reached through relays: there are none yet")
        return _Way(port)
    async with AsyncExitStack() as stack:
        asker = Identity.ephemeral()
        door = None if settings.invite is None else Door(settings.invite, asker.peer_id)
        host = await Libp2pHost.start(asker, initial_peers=settings.initial_peers, client=True, door=door)
        stack.push_async_callback(host.close)
        if settings.reach == "auto":
            reach = await ask_reach(host.transport, settings.initial_peers, settings.host, port)
            if reach.reached is None:
                _log.info("no initial peer could say whether others can dial this machine; taking it that they can")
                return _Way(port)
            if reach.reached:
                return _Way(reach.port, (listen_address(reach.address, reach.port),))
            _log.info("others can't dial %s at port %d: looking for relays", reach.address, reach.port)
        return _Way(port, relays=await _find_relays(settings, host, asker))


async def _find_relays(settings: ServeSettings, host: Libp2pHost, asker: Identity) -> tuple[str, ...]:
    records: tuple[PeerRecord, ...] = ()
    try:
        directory = await KademliaDirectory.start(host, asker, settings.initial_peers, client_mode=True)
        try:
            records = await directory.read()
        finally:
            await directory.close()
    except SwarmError as error:
        _log.info("asking only initial peers to relay: %s", error)
    relays = (*_own(settings.initial_peers), *_of(records))
    if not relays:
        raise NetworkError(
            "others can't dial this machine, and all known peers are behind relays themselves: "
            "forward a port to it and say which with --announce, or give an initial peer that can be dialled"
        )
    return tuple(dict.fromkeys(relays))[:MOST_RELAYS]


def _own(addresses: Iterable[str]) -> list[str]:
    return [address for address in addresses if not is_relayed([address])]


def _of(records: Iterable[PeerRecord]) -> list[str]:
    online = [record for record in records if record.state is PeerState.ONLINE]
    return [address for record in online if (address := relay_address(record.contact.addresses))]


async def _reserve(host: Libp2pHost) -> None:
    try:
        async with asyncio.timeout(RESERVE_SECONDS):
            async for addresses in _looks(host):
                if is_relayed(addresses):
                    return
    except TimeoutError:
        raise NetworkError(
            "others can't dial this machine, and no peer of the swarm would relay for it; "
            "forward a port to it and say which with --announce, or try again later"
        ) from None


async def _looks(host: Libp2pHost) -> AsyncIterator[tuple[str, ...]]:
    """Its addresses, again and again: the daemon does not tell when they change."""
    while True:
        yield await host.transport.addresses()
        await asyncio.sleep(GLANCE_SECONDS)
