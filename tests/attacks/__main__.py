"""An attacker. The victim comes as JSON on the first line of stdin; then each line names the kinds of a mixture, and an
empty one means to stop. It ends with its stdin. What it does is said on stdout.

Of several kinds some are at work at once, each for a few seconds, drawn by a seed.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import Sequence

from swarm.event_loop import new_event_loop
from swarm.identity import Identity
from swarm.libp2p import Libp2pHost
from tests.attacks import frames, records, sessions, streams, work
from tests.attacks.ground import Attack, Ground, Victim
from tests.attacks.kinds import KINDS

ATTACKS: dict[str, Attack] = {
    "valid": frames.valid,
    "strange": frames.strange,
    "invalid": frames.invalid,
    "giant": frames.giant,
    "replayed": frames.replayed,
    "opened": sessions.opened,
    "hoarded": sessions.hoarded,
    "slow": streams.slow,
    "churned": streams.churned,
    "connected": streams.connected,
    "deaf": streams.deaf,
    "half_closed": streams.half_closed,
    "prompts": work.prompts,
    "decoding": work.decoding,
    "training": work.training,
    "stored": records.stored,
    "found": records.found,
    "garbage": records.garbage,
}
assert tuple(ATTACKS) == KINDS
AT_ONCE = 3
LONGEST = 8.0  # seconds that a kind lasts in a mixture


async def attack(ground: Ground, kinds: Sequence[str]) -> None:
    async def one() -> None:
        while True:
            kind = ground.dice.choice(kinds)
            seconds = None if len(kinds) == 1 else ground.dice.uniform(1.0, LONGEST)
            try:
                async with asyncio.timeout(seconds):
                    await ATTACKS[kind](ground)
            except TimeoutError:
                pass
            except Exception as error:  # whatever the victim's defence makes of it: on with the next
                print(f"{kind}: {type(error).__name__}: {error}"[:300], flush=True)
                await asyncio.sleep(1.0)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_ONCE, len(kinds))):
            group.create_task(one())


async def main(seed: int) -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    victim = Victim.from_json(json.loads(await lines.readline()))
    working: asyncio.Task[None] | None = None
    async with await Libp2pHost.start(Identity.ephemeral(), client=True) as host:
        ground = Ground(host, victim, random.Random(seed))
        print("ready", flush=True)
        while line := await lines.readline():
            if working is not None:
                working.cancel()
                await asyncio.wait([working])
            kinds = line.decode().split()
            working = asyncio.create_task(attack(ground, kinds)) if kinds else None
            print(f"now: {' '.join(kinds)}", flush=True)
        if working is not None:
            working.cancel()
            await asyncio.wait([working])


if __name__ == "__main__":
    if hasattr(os, "SCHED_IDLE"):  # where it is started beside those it should not disturb with its own computing
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
