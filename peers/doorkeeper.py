"""A serving peer's part in keeping a private swarm private."""

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from contextlib import suppress

from swarm.addresses import peer_of
from swarm.directory import Directory
from swarm.door import Door, GatedTransport, knock, serve_door
from swarm.errors import NetworkError, WireError
from swarm.ids import PeerId
from swarm.invites import Role
from swarm.libp2p import Libp2pHost
from swarm.messages import Contact

__all__ = ["keep_door"]

PERIOD = 60.0  # seconds between looks at who has to go, and at what another peer knows

_log = logging.getLogger(__name__)


async def keep_door(
    host: Libp2pHost, directory: Directory, door: Door, initial_peers: Sequence[str]
) -> Coroutine[None, None, None]:
    """Answers who knocks, from now on. What it returns is to be run beside: it hears from others which invites were
    taken back, ends the streams of those who are let in no more, and raises AccessError when that is ourselves."""
    news = asyncio.Event()
    await serve_door(host.open_transport, door, news.set)
    first = [Contact(peer_of(address), (address,)) for address in initial_peers]
    return _keep(host, directory, door, first, news)


async def _keep(
    host: Libp2pHost, directory: Directory, door: Door, asked: Sequence[Contact], news: asyncio.Event
) -> None:
    transport = host.transport
    assert isinstance(transport, GatedTransport)
    while True:
        for contact in asked:
            with suppress(NetworkError, WireError):  # one that is gone; another next time
                if await knock(host.open_transport, contact.peer, contact.addresses, door):
                    news.set()
        if news.is_set():
            _log.info("an invite to this private swarm was taken back")
            news.clear()
        transport.sweep()
        door.admit(host.peer_id, door.own, Role.SERVE)
        with suppress(TimeoutError):
            async with asyncio.timeout(PERIOD):
                await news.wait()
        asked = await _one_of(directory, host.peer_id)


async def _one_of(directory: Directory, own: PeerId) -> list[Contact]:
    try:
        others = [record.contact for record in await directory.read() if record.peer != own]
    except NetworkError:
        return []
    return [random.choice(others)] if others else []
