"""Floods of frames: valid, senseless, giant, and the same ones over and over."""

import asyncio
import os
from collections.abc import Callable

from swarm.ids import new_session_id
from swarm.messages import Close, Ping
from swarm.wire import MAX_FRAME, PREFIX, encode
from tests.attacks.ground import Ground, swallow

BURST = 256  # frames in one write
KINDS = ("open", "step", "fork", "relink", "ping", "train", "forward", "fault", "nonsense")


async def valid(ground: Ground) -> None:
    """Pings of a session of its own, as fast as they go."""
    session = ground.opening()

    async def attempt() -> None:
        await _pour(ground, Ping(session.session, 1).pack() * BURST, first=session.pack())

    await ground.again(attempt)


async def strange(ground: Ground) -> None:
    """Frames in good form about sessions that nobody has."""

    async def attempt() -> None:
        frames = [Ping(new_session_id(), 1).pack() + Close(new_session_id()).pack() for _ in range(BURST)]
        await _pour(ground, b"".join(frames))

    await ground.again(attempt)


async def invalid(ground: Ground) -> None:
    """Noise, noise in the form of frames, headers that mean nothing, and headers that take long to read."""

    def noise() -> bytes:
        return os.urandom(4096)

    def framed() -> bytes:
        body = os.urandom(ground.dice.randrange(8, 2000))
        return PREFIX.pack(4 + len(body), len(body)) + body

    def senseless() -> bytes:
        kind = ground.dice.choice(KINDS)
        return encode({"kind": kind, "session": os.urandom(16), "rows": [[1, 2]], "hop": "x", "lease": -1})

    def deep() -> bytes:
        header = b"\x81\xa4kind" + b"\x91" * 200_000 + b"\xc0"
        return PREFIX.pack(4 + len(header), len(header)) + header

    def wide() -> bytes:
        return encode({"kind": "step", "rows": [[0, 0, 1, 0]] * 20_000, "session": bytes(16), "codec": "fp32"})

    makes: tuple[Callable[[], bytes], ...] = (noise, framed, senseless, deep, wide)

    async def attempt() -> None:
        make = ground.dice.choice(makes)
        await _pour(ground, b"".join(make() for _ in range(16)))

    await ground.again(attempt)


async def giant(ground: Ground) -> None:
    """Frames of nearly the size that is allowed, for a session that exists; and some that say they are larger."""

    async def attempt() -> None:
        opening = ground.opening()
        header = {"kind": "step", "session": opening.session, "rows": [[1, 0, 1, 0]], "codec": "fp32", "trace": []}
        frame = encode(header, bytes(MAX_FRAME - 4096))
        over = PREFIX.pack(MAX_FRAME + ground.dice.randrange(1 << 20), 8)
        await _pour(ground, frame if ground.dice.random() < 0.8 else over, first=opening.pack())

    await ground.again(attempt)


async def replayed(ground: Ground) -> None:
    """Steps of a session twice, backwards, with gaps, under other sessions' names."""

    async def attempt() -> None:
        opening = ground.opening(lease=256)
        frames = [ground.step(opening.session, at, 1).pack() for at in range(16)]
        frames += [ground.step(new_session_id(), at, 1).pack() for at in range(4)]
        shuffled = [ground.dice.choice(frames) for _ in range(BURST)]
        await _pour(ground, b"".join(shuffled), first=opening.pack() + b"".join(frames))

    await ground.again(attempt)


async def _pour(ground: Ground, frames: bytes, first: bytes = b"") -> None:
    """`frames` again and again over one stream, while answers are read."""
    async with ground.stream() as stream:
        reading = asyncio.create_task(swallow(stream))
        try:
            await stream.send(first + frames)
            while True:
                await stream.send(frames)
        finally:
            reading.cancel()
