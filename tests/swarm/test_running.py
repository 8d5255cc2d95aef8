import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from swarm.cli import run
from swarm.running import Running, announce_running, running, state_folder

HERE = Running.here("peer", models=("tiny",), blocks="0:4", address="/ip4/127.0.0.1/tcp/1/p2p/x", name="ada")


def test_process_is_known_while_it_runs(tmp_path: Path) -> None:
    with announce_running(HERE, tmp_path):
        assert running(tmp_path) == (HERE,)
    assert running(tmp_path) == ()


def test_who_is_gone_is_left_out_and_forgotten(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    for other in (replace(HERE, pid=gone.pid), replace(HERE, started=HERE.started - 100, kind="gateway")):
        (tmp_path / "running").mkdir(exist_ok=True)
        fields = {name: getattr(other, name) for name in ("pid", "started", "kind", "models")}
        (tmp_path / "running" / f"{other.pid}-{other.kind}.json").write_text(json.dumps(fields))
    (tmp_path / "running" / "broken.json").write_text("{")
    (tmp_path / "running" / "odd.json").write_text('{"pid": "x", "started": 1.0, "kind": "peer", "models": []}')
    assert running(tmp_path) == ()
    assert list((tmp_path / "running").iterdir()) == []


def test_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with announce_running(HERE, tmp_path / "file"):
        assert running(tmp_path / "file") == ()


def test_ps_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert run(["ps"]) == 0
    assert "Nothing of swarm runs here" in capsys.readouterr().out
    with announce_running(HERE, tmp_path / "swarm"):
        assert run(["ps"]) == 0
        shown = capsys.readouterr().out
        assert run(["ps", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["running"]
    assert all(text in shown for text in (str(HERE.pid), "peer", "tiny", "0:4", "ada", "/ip4/127.0.0.1/tcp/1/p2p/x"))
    assert (found["pid"], found["models"], found["blocks"]) == (HERE.pid, ["tiny"], "0:4")


def test_state_follows_the_environment_it_is_given() -> None:
    assert state_folder({"XDG_STATE_HOME": "/x"}, Path("/h")) == Path("/x/swarm")
    assert state_folder({"XDG_STATE_HOME": "x"}, Path("/h")) == Path("/h/.local/state/swarm")
