"""`swarm finetune` over three real peers: what it learns of real instructions, and runs killed at any moment."""

import contextlib
import copy
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from clients.chat import encode_chat
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from tests.real.conftest import SPANS
from tests.real.herd import Herd
from tests.soak.plans import SEED

pytestmark = pytest.mark.soak

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "python_questions.py"
UNSEEN = "What does Python's `calendar.isleap` do?"  # no row is about this module
LIMIT = 1500.0  # s, of one command
STEPS, KILLS = 12, 3  # of the run that is killed


@pytest.fixture(scope="module")
def herd(checkpoint: Checkpoint, cache: Path) -> Iterator[Herd]:
    with Herd(checkpoint, cache) as herd:
        herd.ensure(dict.fromkeys(SPANS, 1))
        yield herd
    assert herd.left_behind() == []


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_bytes(subprocess.run([sys.executable, SCRIPT], check=True, capture_output=True, timeout=60).stdout)
    return path


class Command:
    """One `swarm finetune` in a process of its own."""

    def __init__(self, herd: Herd, data: Path, output: Path, *options: str) -> None:
        places = (f"--data={data}", f"--output={output}", f"--cache-dir={herd.cache}")
        peers = f"--initial-peers={','.join(herd.addresses)}"
        command = [sys.executable, "-m", "swarm", "finetune", str(herd.checkpoint.folder), "--json", *places, peers]
        self._process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def outcome(self) -> dict[str, Any]:
        """When it has ended."""
        out, log = self._process.communicate(timeout=LIMIT)
        assert self._process.returncode == 0, log
        outcome: dict[str, Any] = json.loads(out)
        return outcome

    def kill(self, step: int, delay: float) -> None:
        """SIGKILL to the process, `delay` seconds after it has told of `step` or a later one."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            told = re.match(r"step (\d+) of", line)
            if told and int(told[1]) >= step:
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(delay)
            raise AssertionError(f"it ended before it was killed, after step {step}")
        self._process.kill()
        self._process.communicate()


def digest(output: Path) -> str:
    return hashlib.sha256((output / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_an_adapter_learns_from_real_questions_and_is_an_ordinary_one(
    herd: Herd, questions: Path, local: PreTrainedModel, figures: list[str], tmp_path: Path
) -> None:
    size = ("--steps=40", "--batch=4", "--learning-rate=1e-3", "--held-out=0.03", "--evaluate-every=20")
    began = time.monotonic()
    outcome = Command(herd, questions, tmp_path / "out", *size, f"--sample={UNSEEN}").outcome()
    seconds = time.monotonic() - began
    first, last = outcome["evaluations"][0][1], outcome["evaluations"][-1][1]
    ids = encode_chat(AutoTokenizer.from_pretrained(herd.checkpoint.folder), [("user", UNSEEN)])
    with (
        torch.no_grad(),
        SwarmModelForCausalLM.from_pretrained(
            herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache
        ) as model,
    ):
        there = PeftModel.from_pretrained(model, outcome["output"]).eval()(ids).logits
        plain = local(ids).logits
        here = PeftModel.from_pretrained(copy.deepcopy(local), outcome["output"]).eval()(ids).logits
    apart, moved = float((there - here).abs().max()), float((plain - here).abs().max())
    figures.append(
        f"questions: {len(questions.read_text().splitlines())} rows, held-out loss {first:.3f} to {last:.3f} in "
        f"{outcome['steps']} steps, {seconds:.0f} s; logits of the exported adapter {apart:.1e} apart from those of "
        f"plain PEFT, which are {moved:.1f} from those without an adapter"
    )
    figures += [f"{name}: {outcome[name]!r}" for name in ("before", "after")]
    assert last < 0.7 * first
    assert outcome["before"] != outcome["after"]
    assert apart < 1e-4


def test_a_client_killed_at_any_moment_goes_on_from_its_checkpoint(
    herd: Herd, questions: Path, figures: list[str], tmp_path: Path
) -> None:
    size = (f"--steps={STEPS}", "--batch=2", "--save-every=2", "--evaluate-every=6", "--held-out=0.01")
    whole = Command(herd, questions, tmp_path / "whole", *size).outcome()
    chance = random.Random(SEED)
    saved = []
    for step in sorted(chance.sample(range(1, STEPS - 2), KILLS)):
        Command(herd, questions, tmp_path / "killed", *size).kill(step, chance.uniform(0, 0.5))
        run = tmp_path / "killed" / "run.pt"
        saved.append(torch.load(run, weights_only=True)["step"] if run.exists() else 0)
    resumed = Command(herd, questions, tmp_path / "killed", *size).outcome()
    same = digest(tmp_path / "whole") == digest(tmp_path / "killed")
    figures.append(
        f"client killed {KILLS} times in {STEPS} steps, with checkpoints of steps {saved}: losses equal "
        f"{resumed['losses'] == whole['losses']}, adapter files equal {same}"
    )
    assert resumed["losses"] == whole["losses"]
    assert resumed["evaluations"] == whole["evaluations"]
    assert same
