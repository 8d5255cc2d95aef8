"""Streams and connections: too many, too slow, half closed, opened and closed, never read."""

import asyncio
from contextlib import suppress

from swarm.libp2p import Libp2pStream
from swarm.messages import Ping
from swarm.transport import Stream
from swarm.wire import PREFIX
from tests.attacks.ground import Ground

MANY = 64
DRIP_SECONDS = 1.0
BURST = 256
ASKED = b"\x13/multistream/1.0.0\n"


async def slow(ground: Ground) -> None:
    """Many streams, silent or with a byte of an announced frame now and then."""

    async def one() -> None:
        async def attempt() -> None:
            async with ground.stream() as stream:
                await stream.send(PREFIX.pack(32 << 20, 100)[: ground.dice.randrange(1, 9)])
                talks = ground.dice.random() < 0.5
                while not _ended(stream):
                    await asyncio.sleep(DRIP_SECONDS)
                    if talks:
                        await stream.send(b"\0")

        await ground.again(attempt)

    async with asyncio.TaskGroup() as group:
        for _ in range(MANY):
            group.create_task(one())


async def churned(ground: Ground) -> None:
    """Streams opened, used for one session perhaps, and closed."""

    async def one() -> None:
        async def attempt() -> None:
            async with ground.stream() as stream:
                if ground.dice.random() < 0.5:
                    await stream.send(ground.opening().pack())

        await ground.again(attempt)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(one())


async def connected(ground: Ground) -> None:
    """TCP connections to the daemon's port: closed at once, or left in the middle of the handshake."""
    parts = ground.victim.addresses[0].split("/")  # /ip4/…/tcp/…
    held: list[asyncio.StreamWriter] = []
    try:
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(parts[2], int(parts[4]))
                writer.write(ground.dice.choice((b"", ASKED, b"\xff" * 100)))
                if ground.dice.random() < 0.1 and len(held) < MANY:
                    held.append(writer)
                else:
                    writer.close()
            await asyncio.sleep(0.002)
    finally:
        for writer in held:
            writer.close()


async def deaf(ground: Ground) -> None:
    """Asks without end, and never reads an answer."""

    async def attempt() -> None:
        async with ground.stream() as stream:
            opening = ground.opening(lease=256)
            await stream.send(opening.pack() + ground.step(opening.session, 0, 200).pack())
            while True:
                await stream.send(Ping(opening.session, 1).pack() * BURST)

    await ground.again(attempt)


async def half_closed(ground: Ground) -> None:
    """Says that nothing more comes, and stays."""

    async def attempt() -> None:
        async with ground.stream() as stream:
            await stream.send(ground.opening().pack())
            if isinstance(stream, Libp2pStream):
                stream._writer.write_eof()
            await asyncio.sleep(DRIP_SECONDS)

    await asyncio.gather(*(ground.again(attempt) for _ in range(8)))


def _ended(stream: Stream) -> bool:
    return isinstance(stream, Libp2pStream) and (stream._reader.at_eof() or stream._writer.is_closing())
