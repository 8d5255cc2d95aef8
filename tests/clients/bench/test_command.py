"""Command lines of `swarm bench`: one that runs in this process, and those that are refused before anything starts."""

import json
from pathlib import Path

import pytest

from swarm.cli import run


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def test_one_process_is_measured_beside_its_floor(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    words = ["--prompt-tokens=8", "--new-tokens=4", "--rounds=1", f"--cache-dir={tmp_path}"]
    assert run(["bench", "local", str(folder), *words]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["bench"] == "local"
    assert 0 < said["rate"]["median"] < said["most"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["local", "--dtype=int4"], "one process computes in fp32, bf16, fp16"),
        (["swarm", "--peers=0"], "--peers takes whole numbers above zero"),
        (["swarm", "--precision=fp32,int3"], "--precision is one of"),
        (["swarm", "--client-head=fp8"], "--client-head is one of"),
        (["swarm", "--peers=2,9"], "--peers 9: this model has only 4 blocks"),
        (["gateway", "--peers=9"], "--peers 9: this model has only 4 blocks"),
        (["train", "--peers=9", "--clients=2"], "--peers 9: this model has only 4 blocks"),
        (["train", "--cores-each=0.5"], "--cores-each is for several clients"),
        (["train", "--peers=9", "--bandwidth-mbit=10"], "--peers 9: this model has only 4 blocks"),
        (["train", "--bandwidth-mbit=10", "--compress=zip"], "--compress is one of none, sums, int8, auto"),
        (["failures", "--peers=9"], "--peers 9: this model has only 4 blocks"),
        (["failures", "--probabilities=0.1,1"], "--probabilities takes numbers from 0 to below 1"),
        (["wan", "--peers=9"], "--peers 9: this model has only 4 blocks"),
        (["wan", "--precision="], "--precision is one of"),
        (["wan", "--client-dtype=int8"], "--client-dtype is one of"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_words(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    assert run(["bench", words[0], str(folder), *words[1:], f"--cache-dir={tmp_path}"]) == 2
    assert sentence in capsys.readouterr().err
