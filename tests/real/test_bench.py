"""`swarm bench swarm` and `wan` from the command line to their figures: real peers of a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.gateway.bytes_tokenizer import VOCAB, save_tokenizer
from tests.models import tiny_model

DELAY_MS = 20.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


def bench(regime: str, model: Path, cache: Path, *options: str) -> dict[str, Any]:
    """The last line of what it prints."""
    common = ("--new-tokens=6", "--prompt-tokens=8", "--rounds=1", f"--cache-dir={cache}")
    return last_line(regime, model, *common, *options)


def last_line(regime: str, model: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "swarm", "bench", regime, str(model), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(said, dict)
    return said


def test_swarm_is_measured_against_one_process(tiny: Path, tmp_path: Path) -> None:
    said = bench("swarm", tiny, tmp_path, "--peers=1", "--sessions=1,3", "--long-prompt=40", "--repeat-prompt=32")
    one, three = said["cases"]
    assert (one["name"], three["name"]) == ("1 peer, fp32, 1 session", "1 peer, fp32, 3 sessions")
    for case in (one, three):
        assert case["faithful"] is True
        assert 0 < case["rate"]["median"] < case["most"]
        assert case["ratio"]["median"] > 0
    assert said["long_prompt"]["1 peer, fp32"]["seconds"]["median"] > 0
    assert said["repeated_prompt"]["1 peer, fp32"]["ratio"]["median"] > 0


@pytest.mark.soak  # half a minute; the lines have tests of their own
def test_far_peers_are_reached_over_their_lines_alone(tiny: Path, tmp_path: Path) -> None:
    """Were a way around a line found, the command would say so in place of a figure."""
    said = bench("wan", tiny, tmp_path, "--peers=2", f"--delay-ms={DELAY_MS}")
    assert said["delays"] == pytest.approx(3 * DELAY_MS)
    assert said["whole"] > said["delays"]
    assert said["over"]["median"] > 1
    assert said["lines"]["connections"] >= 3


@pytest.mark.soak  # half a minute; how its figures are summed up is tested by itself
def test_clients_that_train_at_once_are_measured_against_one(tiny: Path, tmp_path: Path) -> None:
    options = ("--rounds=1", f"--cache-dir={tmp_path}", "--peers=2", "--clients=2", "--rows=2", "--length=16")
    said = last_line("train", tiny, *options)
    assert said["tokens_per_second"]["one"]["median"] > 0
    assert 0 < said["over_one"]["median"] < 4


@pytest.mark.soak  # half a minute; what it measures is tested by itself
def test_gateway_is_measured_against_the_python_client(tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path / "tiny", vocab_size=VOCAB)
    save_tokenizer(model)
    said = bench("gateway", model, tmp_path, "--peers=2", "--streams=3", "--turns=3")
    assert 0 < said["streams"]["median"] < said["most"]
    assert said["ratio"]["median"] > 0
    assert said["same"] == said["rounds"] == 1
    assert len(said["chat"]) == 3
    assert said["streams_waits"]["between"]["median"] > 0


@pytest.mark.soak  # a minute; its parts have tests of their own
def test_peers_that_fail_are_measured_beside_those_that_do_not(tiny: Path, tmp_path: Path) -> None:
    """Were a failure not noticed, the command would say so in place of a figure."""
    options = ("--peers=2", "--new-tokens=60", "--probabilities=0.02", "--rounds=1", f"--cache-dir={tmp_path}")
    said = last_line("failures", tiny, *options)
    calm, ours, replay, _ = said["cases"]
    assert (calm["failures"], calm["kept"]["median"]) == ([0], 1.0)
    assert ours["failures"][0] > 0
    assert ours["same"] is replay["same"] is True
    assert ours["rate"]["median"] > 0
    assert said["recoveries"]["ours"]["count"] > 0
