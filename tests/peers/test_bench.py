"""`swarm bench peer` on a tiny model, in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peers.loading import load
from peers.measuring import Table, Trial, measure, settings_of
from swarm.cli import run
from swarm.ids import Span
from tests.models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # then the command leaves the environment as it is


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(said, dict)
    return said


def test_peer_is_measured_beside_its_floor(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    words = ["--blocks=1:3", "--rows=1,3", "--context=8", "--prompt=16", "--rounds=2", f"--cache-dir={tmp_path}"]
    assert run(["bench", "peer", str(model), *words]) == 0
    said = last_line(capsys)
    assert said["bench"] == "peer"
    assert said["settings"]["blocks"] == [1, 3]
    assert list(said["figures"]) == ["1 rows", "3 rows", "a prompt of 16"]
    for figure in said["figures"].values():
        assert 0 < figure["least"] < figure["compute"]["median"] < figure["turn"]["median"]


@pytest.mark.parametrize(
    "word", ["--rows=0", "--blocks=9:12", "--dtype=fp3", "--quantization=int3", "--quantization=auto"]
)
def test_what_can_not_be_measured_is_refused_in_words(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, word: str
) -> None:
    assert run(["bench", "peer", str(model), word, f"--cache-dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("swarm: ")


def trial(model: Path, cache: Path) -> Trial:
    return Trial(
        model=str(model),
        cache=cache,
        blocks=Span(0, 2),
        rows=(1, 2),
        context=5,
        prompt=7,
        dtype="fp32",
        quantization="none",
        device="cpu",
        threads=1,
        rounds=1,
    )


def test_every_turn_computes_all_sessions_and_closed_ones_make_room(model: Path, tmp_path: Path) -> None:
    wanted = trial(model, tmp_path)
    loaded = load(settings_of(wanted, Span(0, 2)))
    samples = measure(wanted, loaded, Console(quiet=True))
    assert {name: len(each) for name, each in samples.items()} == {"1 rows": 1, "2 rows": 1, "a prompt of 7": 1}
    table = Table(loaded, sessions=3)
    sessions = [table.open(wanted.lease) for _ in range(3)]
    sample = table.turn(sessions, 5)
    assert 0 < sample.compute < sample.turn
    for session in sessions:
        table.close(session)
    assert table.open(wanted.lease) not in sessions
