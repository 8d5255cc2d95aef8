"""How long a reader waits when the only peer of some blocks is killed and another stands by: from SIGKILL to the next
token. A new standby takes the place of the one that came, before that is killed in its turn.

SWARM_SOAK_STANDBY_KILLS=100 makes more.
"""

import os
import time
from pathlib import Path

import pytest
from transformers import LogitsProcessorList, PreTrainedModel

from clients.local_swarm import LocalSwarm
from clients.model import SwarmModelForCausalLM
from swarm.subprocesses import ServeProcess
from tests.real.prompts import Text, answers, options
from tests.real.watching import AtToken
from tests.soak.waits import said

KILLS = int(os.environ.get("SWARM_SOAK_STANDBY_KILLS") or 10)
NEW, AT = 48, 40  # tokens; those before the kill give the standby time to have looked around
CONTEXT = 60  # tokens
PATIENCE = 120.0
START = 240.0  # s for a peer to get ready, on a machine that does other things too
FRONT, BACK = "0:15", "15:30"
STANDBY = '"event": "standby"'

pytestmark = [pytest.mark.soak, pytest.mark.timeout(120 * KILLS + 600)]


def test_reader_waits_for_a_standby(cache: Path, local: PreTrainedModel, text: Text, figures: list[str]) -> None:
    prompt = text.prompt(CONTEXT, 0)
    expected = answers(local, prompt, **options("greedy", NEW))
    gaps: list[float] = []
    with LocalSwarm("smollm2", cache) as swarm:
        swarm.start("front", "--blocks", FRONT).wait_ready(START)
        serving = stand_by(swarm, 0)  # nobody serves the others, so it is called at once
        serving.wait_ready(START)
        for number in range(KILLS):
            waiting = stand_by(swarm, number + 1)
            gaps.append(gap(swarm, serving, prompt, expected, cache))
            waiting.wait_ready(START)
            serving = waiting
    figures.append(f"a standby: from the signal to the next token at {CONTEXT + AT} tokens, {said(gaps)}")


def stand_by(swarm: LocalSwarm, number: int) -> ServeProcess:
    peer = swarm.start(f"standby{number}", "--blocks", BACK, "--standby", "--standby-below", "1")
    peer.wait_line(STANDBY, START)
    return peer


def gap(
    swarm: LocalSwarm, victim: ServeProcess, prompt: dict[str, object], expected: list[list[int]], cache: Path
) -> float:
    """Seconds from the death of `victim` in mid-answer to the next token."""
    struck: list[float] = []

    def strike() -> None:
        struck.append(time.monotonic())
        victim.kill()

    seen = AtToken(AT, strike)
    front = swarm.peers[0].ready.addresses
    with SwarmModelForCausalLM.from_pretrained("smollm2", initial_peers=front, cache=cache, patience=PATIENCE) as model:
        ours = answers(model, prompt, logits_processor=LogitsProcessorList([seen]), **options("greedy", NEW))
    assert ours == expected
    found = seen.gap_after(struck[0])
    assert found is not None
    victim.wait()
    return found
