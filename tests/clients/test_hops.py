"""Streams to peers, which come and go by the minute."""

import asyncio
import gc
import weakref

from clients.hops import Hops
from swarm.ids import PeerId
from swarm.memory import MemoryNetwork
from swarm.messages import PROTOCOL, Contact
from swarm.transport import Stream
from tests.virtual import run_virtual


async def listen(stream: Stream) -> None:
    await stream.receive()


def test_peers_that_have_gone_are_forgotten() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        hops = Hops(network.transport(PeerId("client")), 5.0, lambda _: None)
        for name in ("gone", "here"):
            await network.transport(PeerId(name)).serve(PROTOCOL, listen)
        gone = weakref.ref(await hops.to(Contact(PeerId("gone"))))
        network.kill(PeerId("gone"))
        await asyncio.sleep(1.0)
        here = await hops.to(Contact(PeerId("here")))
        gc.collect()
        assert gone() is None
        assert await hops.to(Contact(PeerId("here"))) is here
        await hops.close()

    run_virtual(main())


def test_who_is_asked_for_twice_at_once_is_dialled_once() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay=0.1)
        hops = Hops(network.transport(PeerId("client")), 5.0, lambda _: None)
        await network.transport(PeerId("peer")).serve(PROTOCOL, listen)
        one, other = await asyncio.gather(*(hops.to(Contact(PeerId("peer"))) for _ in range(2)))
        assert one is other
        await hops.close()

    run_virtual(main())
