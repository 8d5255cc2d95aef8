"""`swarm finetune`: what is wrong with it is said before a swarm is joined, and nothing is written."""

import json
from pathlib import Path

import pytest

from swarm.cli import run
from swarm.identity import Identity

NOWHERE = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.ephemeral().peer_id}"
GOOD = {"text": "Our town lies by the sea."}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        ([], [], "nothing to learn from"),
        ([{"text": ""}], [], "nothing to learn from"),
        ([GOOD, {"text": "word " * 600}], [], "line 2 of"),
        ([GOOD, {"text": "word " * 3000}], ["--max-length=100000"], "this model takes"),
        ([GOOD], ["--method=magic"], "--method is one of lora"),
        ([GOOD], ["--learning-rate=0"], "--learning-rate is above zero"),
        ([GOOD], ["--learning-rate=nan"], "--learning-rate is above zero"),
        ([GOOD], ["--held-out=1"], "--held-out is a share"),
        ([GOOD], ["--codec=zip"], "--codec is one of"),
        ([GOOD], ["--method=prompt", "--virtual-tokens=100000"], "leaves no room"),
        ([GOOD], ["--data=nowhere.jsonl"], "there is no file nowhere.jsonl"),
    ],
)
def test_what_is_wrong_is_said_before_a_swarm_is_joined(
    rows: list[dict[str, str]],
    options: list[str],
    sentence: str,
    text_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, output = tmp_path / "rows.jsonl", tmp_path / "out"
    data.write_text("\n".join(map(json.dumps, rows)))
    words = [f"--data={data}", f"--output={output}", f"--initial-peers={NOWHERE}", f"--cache-dir={tmp_path}"]
    assert run(["finetune", str(text_folder), *words, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("swarm: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not output.exists()
