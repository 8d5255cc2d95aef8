"""The network: the port, the addresses that others are told, the ways into a swarm, and the clocks there."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import psutil

from clients.doctor.finding import Finding, fail, fine, skipped, warn
from swarm.addresses import announced, check_free, peer_of
from swarm.dialling import tcp_place, why_no_connection
from swarm.errors import NetworkError, SwarmError, Unreachable, UsageError
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.kademlia import CLOCK_LIMIT, KademliaDirectory, clock_offset
from swarm.libp2p import Libp2pHost
from swarm.running import Running

__all__ = ["Way", "addresses", "port", "swarm_of"]

CONNECT_SECONDS = 4.0  # for a connection to an address
SWARM_SECONDS = 40.0  # for everything that asks a swarm
DRIFT = CLOCK_LIMIT / 3  # seconds that a clock may differ before it is worth a word


@dataclass(frozen=True, slots=True)
class Way:
    """How a peer would be on the network. `port` None: the usual one if it is free."""

    host: str
    port: int | None
    usual_port: int
    announce: tuple[str, ...]
    initial_peers: tuple[str, ...]


# --- the port ------------------------------------------------------------------------------------------------------


def port(way: Way, others: Sequence[Running]) -> Finding:
    """`others`: what else runs here."""
    number = way.usual_port if way.port is None else way.port
    try:
        check_free(way.host, number)
    except (NetworkError, OSError, OverflowError) as error:
        owner = next((each for each in others if f"/tcp/{number}/" in (each.address or "")), None)
        says = f"port {number} of {way.host} can't be used: {str(error).partition(';')[0]}"
        if owner is not None:
            says = f"port {number} is taken by your own {owner.kind}, process {owner.pid}"
        if way.port is not None:
            return fail("port", says, f"stop what uses it, or give another --port{_who(number)}")
        return warn("port", says, "a peer takes any free port then; give --port to keep one address")
    return fine("port", f"{way.host}:{number} is free")


def _who(number: int) -> str:
    return f" (`ss -ltnp 'sport = :{number}'` shows who does)"


# --- addresses -----------------------------------------------------------------------------------------------------


def addresses(way: Way) -> list[Finding]:
    """What others would be told, and who can reach it, as far as addresses alone show it."""
    if way.announce:
        return [_announced(address) for address in way.announce]
    listening = ipaddress.ip_address(way.host)
    if listening.is_loopback:
        todo = "give --host 0.0.0.0 to serve others"
        return [warn("addresses", f"{way.host} is reached by this machine alone", todo)]
    own = [listening] if not listening.is_unspecified else _own(listening.version)
    public = [str(address) for address in own if address.is_global]
    if public:
        return [fine("addresses", f"everybody can be told {', '.join(public)}, if no firewall is before it")]
    told = ", ".join(str(address) for address in own if not address.is_loopback) or "no address but loopback"
    todo = "behind a router, forward the port to this machine and give --announce with the router's public address"
    return [warn("addresses", f"this machine has {told}: only your own network reaches that", todo)]


def _announced(address: str) -> Finding:
    try:
        announced(address)
    except UsageError as error:
        return fail("announced address", str(error), "give --announce IP:PORT")
    tcp = tcp_place(address)
    try:
        place = ipaddress.ip_address(tcp[0]) if tcp else None
    except ValueError:  # a name, which is looked up when it is dialled
        place = None
    if place is None or place.is_global:
        return fine("announced address", address)
    if place in _own(place.version):
        says = f"{address} is reached from {'this machine' if place.is_loopback else 'your own network'} alone"
        return warn("announced address", says, "announce the public address of your router for others")
    if place.is_unspecified or place.is_multicast or place.is_reserved:
        return fail("announced address", f"{address} is nobody's address", "give --announce with a public one")
    says = f"{address} is a private address, and none of this machine's"
    return warn("announced address", says, "announce a public address, unless a router of your own has this one")


def _own(version: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    found = [entry for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == family]
    return [ipaddress.ip_address(entry.address.partition("%")[0]) for entry in found]


# --- a swarm -------------------------------------------------------------------------------------------------------


async def swarm_of(way: Way) -> list[Finding]:
    """The ways in, one by one; clocks; what is there; and whether the announced addresses lead here."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(SWARM_SECONDS), AsyncExitStack() as stack:
            await _ask(way, stack, found)
    except TimeoutError:
        found.append(fail("swarm", f"no end after {SWARM_SECONDS:.0f} s", "try again, with fewer --initial-peers"))
    except SwarmError as error:
        found.append(fail("swarm", str(error), "run again with --debug, and report it if it stays"))
    return found


async def _ask(way: Way, stack: AsyncExitStack, found: list[Finding]) -> None:
    host = await Libp2pHost.start(Identity.ephemeral(), client=True, open_timeout=CONNECT_SECONDS)
    stack.push_async_callback(host.close)
    looks = [_look(host, address) for address in way.initial_peers]
    reached: list[tuple[str, float | None]] = []
    for address, (finding, offset, alive) in zip(way.initial_peers, await asyncio.gather(*looks), strict=True):
        found.append(finding)
        if alive:
            reached.append((address, offset))
    found.append(_clock([offset for _, offset in reached if offset is not None], asked=bool(way.initial_peers)))
    if reached:
        found.append(await _directory(host, [address for address, _ in reached]))
    if way.announce:
        found += await _announced_leads_here(way, host)


async def _look(host: Libp2pHost, address: str) -> tuple[Finding, float | None, bool]:
    """What is at `address`, by how much its clock differs, and whether it can be joined."""
    check, todo = "initial peer", "ask for a newer address, or start that peer again"
    try:
        peer = peer_of(address)
    except UsageError as error:
        return fail(check, str(error), "copy the whole address that a serving peer prints"), None, False
    if (trouble := await why_no_connection(address)) is not None:
        return fail(check, f"{address}: {trouble}", todo), None, False
    try:
        await host.open_transport.dial(peer, [address])
    except Unreachable as error:
        says = f"somebody else, or no peer at all, is at {address} ({str(error).partition(': ')[2] or error})"
        return fail(check, says, todo), None, False
    try:
        offset = await clock_offset(host, peer, CONNECT_SECONDS)
    except NetworkError:
        return warn(check, f"{address} answers, but is no member of a swarm's directory", todo), None, False
    return fine(check, f"{address} answers"), offset, True


def _clock(offsets: Sequence[float], *, asked: bool) -> Finding:
    if not offsets:
        why = "no peer answered" if asked else "no --initial-peers to compare it with"
        return skipped("clock", f"{why}; it has to be right to {CLOCK_LIMIT:g} s")
    median = sorted(offsets)[len(offsets) // 2]
    way = "behind" if median > 0 else "ahead of"
    says = (
        f"this machine's clock is {abs(median):.1f} s {way} that of {'the peer' if len(offsets) == 1 else 'the peers'}"
    )
    todo = "set it right, for example with NTP: timedatectl set-ntp true"
    if abs(median) > CLOCK_LIMIT:
        return fail("clock", f"{says}; beyond {CLOCK_LIMIT:g} s nobody lets it join", todo)
    if abs(median) > DRIFT:
        return warn("clock", says, todo)
    return fine("clock", f"within {max(0.1, abs(median)):.1f} s of the swarm's")


async def _directory(host: Libp2pHost, initial_peers: Sequence[str]) -> Finding:
    try:
        directory = await KademliaDirectory.start(host, Identity.ephemeral(), initial_peers, client_mode=True)
    except NetworkError as error:
        return fail("directory", str(error), "see what is said above of the initial peers and the clock")
    try:
        records = await directory.read()
    except NetworkError as error:
        return fail("directory", str(error), "try again; if it stays, ask for another initial peer")
    finally:
        await directory.close()
    models = sorted({record.model_name for record in records})
    if not records:
        return warn("directory", "nobody serves anything in this swarm", "serve: swarm-serve MODEL --initial-peers …")
    return fine("directory", f"{len(records)} peers serve {', '.join(models)[:200]}")


async def _announced_leads_here(way: Way, asker: Libp2pHost) -> list[Finding]:
    """Whether somebody who dials an announced address finds a peer that listens here."""
    number = way.usual_port if way.port is None else way.port
    identity = Identity.ephemeral()
    try:
        host = await Libp2pHost.start(identity, host=way.host, port=number)
    except SwarmError:
        return [skipped("announced address", f"not dialled, since port {number} can't be used now")]
    try:
        dials = [_leads_here(asker, identity.peer_id, address) for address in way.announce]
        return list(await asyncio.gather(*dials))
    finally:
        await host.close()


async def _leads_here(asker: Libp2pHost, peer: PeerId, address: str) -> Finding:
    check, todo = "announced address", "check the address and its port, and that the router forwards it to this machine"
    if (trouble := await why_no_connection(address)) is not None:
        return warn(check, f"from here, {address} leads nowhere: {trouble}", f"{todo}; then try from another network")
    try:
        await asker.open_transport.dial(peer, [address.partition("/p2p/")[0]])
    except Unreachable:
        return fail(check, f"somebody else is at {address}, not this machine's port", todo)
    return fine(check, f"{address} leads to this machine")
