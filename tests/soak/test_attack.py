"""One peer attacks a serving peer in every way that we know of, all mixed, while an honest client generates there.

Phases with and without attack alternate, so that whatever else this machine does concerns both. A quiet one begins when
the attacker has left and what it had sent has been worked off; the next attack is another's.
SWARM_SOAK_ATTACK=60 makes it an hour of attack; SWARM_SOAK_KINDS="prompts giant" attacks in these ways alone.
"""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from swarm.checkpoint import Checkpoint
from tests.attacks.arena import NEW_TOKENS, Answer, Arena
from tests.attacks.honest import PROMPT
from tests.attacks.kinds import KINDS
from tests.real.prompts import Text, answers, options
from tests.soak.plans import SEED

MINUTES = float(os.environ.get("SWARM_SOAK_ATTACK") or 5)
MIXTURE = tuple((os.environ.get("SWARM_SOAK_KINDS") or " ".join(KINDS)).split())
ROUNDS = max(2, round(MINUTES / 10))
PHASE = 60 * MINUTES / ROUNDS  # seconds with attack
CALM = 65.0  # seconds without; memory is returned every minute
RATIO = 1.3
FREE_SECONDS = 600.0  # what has arrived of an attacker is worked off slowly: four minutes were seen
GROWTH = 128 << 20  # bytes of a process, from one calm minute to another: what allocators keep in pieces

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(600 + 100 * MINUTES + (ROUNDS + 1) * (CALM + FREE_SECONDS)),
    pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="nothing else keeps the attacker from taking processors"),
]


def test_attacks_of_one_peer_cost_others_nothing_they_notice(
    checkpoint: Checkpoint, cache: Path, local: PreTrainedModel, text: Text, figures: list[str]
) -> None:
    with Arena(checkpoint, cache, SEED) as arena:
        arena.play(PHASE / 2, MIXTURE)  # what is kept for ever is kept from now on
        left, attacked, calm = [ended(arena)], [], [arena.play(CALM)]
        for _ in range(ROUNDS):
            attacked.append(arena.play(PHASE, MIXTURE))
            left.append(ended(arena))
            calm.append(arena.play(CALM))
        given = list(arena.answers)
    normal, slowed = ([took for phase in phases for took in phase.steps(given)] for phases in (calm, attacked))
    ratio = p95(slowed) / p95(normal)
    figures.append(
        f"{len(attacked) * PHASE / 60:.0f} min of attack: step p50 {milli(statistics.median(slowed))}, p95 "
        f"{milli(p95(slowed))}; quiet {milli(statistics.median(normal))}, {milli(p95(normal))}; p95 {ratio:.2f}x; "
        f"{len(given)} answers"
    )
    sizes = {
        name: (before >> 20, max(phase.memory[name] for phase in attacked) >> 20, calm[-1].memory[name] >> 20)
        for name, before in calm[0].memory.items()
    }
    figures.append("MiB of the peer's processes before it, at most, and after it: " + str(sizes))
    assert failed(given) == []
    assert wrong(given, local, text) == []
    assert not any(left)
    assert all(after - before <= GROWTH >> 20 for before, _, after in sizes.values())
    assert ratio <= RATIO


def failed(given: Sequence[Answer]) -> list[str]:
    """What users would have seen, and peers that seemed to fail."""
    return [f"{each.number}: {each.error or each.lost}" for each in given if each.error or each.lost]


def wrong(given: Sequence[Answer], local: PreTrainedModel, text: Text) -> list[int]:
    """Answers that are not those of the whole model in one process; of a long soak, some of them."""
    some = given[:: max(1, len(given) // 50)]
    return [
        each.number
        for each in some
        if [each.answer] != answers(local, text.batch([PROMPT], each.number), **options("greedy", NEW_TOKENS))
    ]


def ended(arena: Arena) -> dict[str, int]:
    """What the peer still has open for an attacker, of files and sockets, minutes after that has left: nothing."""
    arena.play(1.0)
    arena.end_attack()
    deadline = time.monotonic() + FREE_SECONDS
    while (
        left := {name: more for name, more in arena.left_open().items() if more > 0}
    ) and time.monotonic() < deadline:
        time.sleep(1.0)
    return left


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def milli(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
