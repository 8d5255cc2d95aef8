"""What waits for slow readers: so much of each, so much of all, and who holds most gives way."""

import asyncio

import pytest

from swarm.errors import StreamClosed
from swarm.ids import PeerId
from swarm.outlet import Allowance, Outlet
from swarm.transport import Stream
from tests.virtual import run_virtual


class Slow(Stream):
    """Takes nothing until it is told to."""

    def __init__(self) -> None:
        self.remote = PeerId("slow")
        self.awake = asyncio.Event()
        self.closed = False
        self.taken: list[bytes] = []

    @property
    def gone(self) -> bool:
        return self.closed

    async def send(self, frame: bytes) -> None:
        await self.awake.wait()
        self.taken.append(frame)

    async def receive(self) -> bytes:
        raise StreamClosed("nothing comes")

    def close(self) -> None:
        self.closed = True


def test_streams_of_one_peer_share_what_may_wait() -> None:
    async def main() -> None:
        allowance = Allowance(100)
        streams = [Slow() for _ in range(3)]
        outlets = [Outlet(stream, allowance) for stream in streams]
        for outlet in outlets:
            outlet.post(bytes(40))
        assert [stream.closed for stream in streams] == [False, False, True]
        assert allowance.used == 80, "what the closed one held is free again"
        outlets[2].post(bytes(1000))
        assert allowance.used == 80

    run_virtual(main())


def test_when_all_is_taken_those_give_way_who_hold_more_than_a_sixteenth() -> None:
    async def main() -> None:
        everything = Allowance(1000)
        hoarders = [(stream := Slow(), Outlet(stream, Allowance(400, everything))) for _ in range(3)]
        modest = Slow()
        outlet = Outlet(modest, Allowance(400, everything))
        for _, hoard in hoarders:
            hoard.post(bytes(340))
        outlet.post(bytes(20))
        assert not modest.closed
        assert [stream.closed for stream, _ in hoarders] == [False, False, True]

    run_virtual(main())


def test_what_was_sent_waits_no_more() -> None:
    async def main() -> None:
        allowance, stream = Allowance(100), Slow()
        outlet = Outlet(stream, allowance)
        running = asyncio.create_task(outlet.run())
        for _ in range(2):
            outlet.post(bytes(40))
        stream.awake.set()
        await outlet.drained()
        assert (len(stream.taken), allowance.used) == (2, 0)
        outlet.close()
        with pytest.raises(StreamClosed):
            await running

    run_virtual(main())
