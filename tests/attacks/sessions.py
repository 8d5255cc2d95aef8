"""Sessions without end, and room that nobody uses."""

import asyncio

from swarm.messages import Busy, Ping, Ready, parse
from tests.attacks.ground import Ground, swallow

BURST = 64
LARGEST = 1 << 20  # tokens
KEEP_SECONDS = 1.0


async def opened(ground: Ground) -> None:
    """Opened and forgotten; streams are changed from time to time."""

    async def attempt() -> None:
        async with ground.stream() as stream:
            reading = asyncio.create_task(swallow(stream))
            try:
                for _ in range(40):
                    await stream.send(b"".join(ground.opening(lease=1).pack() for _ in range(BURST)))
            finally:
                reading.cancel()

    await ground.again(attempt)


async def hoarded(ground: Ground) -> None:
    """All the room there is, in as few sessions as it takes, kept alive with pings and never used."""

    async def attempt() -> None:
        async with ground.stream() as stream:
            lease, held = LARGEST, []
            while lease:
                opening = ground.opening(lease)
                await stream.send(opening.pack())
                answer = parse(await stream.receive())
                if isinstance(answer, Ready):
                    held.append(opening.session)
                elif lease > 1 or isinstance(answer, Busy):
                    lease //= 2
            reading = asyncio.create_task(swallow(stream))
            try:
                while not reading.done():
                    await stream.send(b"".join(Ping(session, 0).pack() for session in held) or ground.opening(1).pack())
                    await asyncio.sleep(KEEP_SECONDS)
            finally:
                reading.cancel()

    await ground.again(attempt)
