"""Work that anybody may ask for, as much of it as one peer can."""

import asyncio

from swarm.errors import StreamClosed
from swarm.messages import Out, Ready, parse
from swarm.training import Forward, MicroBatch, Train
from swarm.transport import Stream
from tests.attacks.ground import Ground, swallow

SESSIONS = 64
PROMPT = 256  # tokens of a step
LONGEST = 1024  # of a row, which begins again then
TRAINED = 512  # tokens of a micro-batch


async def prompts(ground: Ground) -> None:
    """Long prompts of many sessions."""
    await ground.again(lambda: _sessions(ground, PROMPT))


async def decoding(ground: Ground) -> None:
    """A token at a time of many sessions, each asked for as soon as the one before has come."""
    await ground.again(lambda: _sessions(ground, 1))


async def training(ground: Ground) -> None:
    """Micro-batches that are to be kept for going backward, and training sessions without end."""

    async def attempt() -> None:
        async with ground.stream() as stream:
            reading = asyncio.create_task(swallow(stream))
            try:
                while not reading.done():
                    opening = ground.opening()
                    train = Train(opening.session, opening.model, opening.hop, "fp32")
                    batch = MicroBatch(1, (TRAINED,), (), 0)
                    forward = Forward(train.session, batch, True, "fp32", ground.states(TRAINED))
                    await stream.send(train.pack() + forward.pack())
                    await asyncio.sleep(0.05)
            finally:
                reading.cancel()

    await ground.again(attempt)


async def _sessions(ground: Ground, tokens: int) -> None:
    async with ground.stream() as stream:
        at: dict[bytes, int] = {}
        for _ in range(SESSIONS):
            await stream.send(ground.opening(lease=LONGEST).pack())
        while True:
            await _answer(ground, stream, at, tokens)


async def _answer(ground: Ground, stream: Stream, at: dict[bytes, int], tokens: int) -> None:
    message = parse(await stream.receive())
    session = message.session
    if isinstance(message, Ready):
        at[session] = 0
    elif isinstance(message, Out):
        at[session] += tokens
    else:  # no room, or no longer: another one
        await asyncio.sleep(0.01)
        at.pop(session, None)
        await stream.send(ground.opening(lease=LONGEST).pack())
        return
    if at[session] + tokens > LONGEST:
        raise StreamClosed("its sessions are full: they begin again")
    await stream.send(ground.step(session, at[session], tokens).pack())
