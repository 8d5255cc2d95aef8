"""`swarm chat` as a command: from a pipe, and at a terminal."""

import io
import sys
from pathlib import Path

import pytest

from swarm.cli import run
from tests.clients.terminal.scripted import Said, chunk, refusal, scripted, whole
from tests.users.terminal import Terminal


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def typed(text: str, monkeypatch: pytest.MonkeyPatch, url: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return run(["chat", "--url", url])


def test_every_line_of_a_pipe_is_a_turn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(whole("One"), whole("Two")) as server:
        assert typed("Hi\nAnd\\\nthen?\n/exit\nnever", monkeypatch, server.url) == 0
        assert [message["content"] for message in server.asked[-1]["messages"]] == ["Hi", "One", "And\nthen?"]
    assert capsys.readouterr().out == "One\nTwo\n"


def test_failure_of_the_last_turn_of_a_pipe_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(whole("One"), refusal(500, "oh")) as server:
        assert typed("Hi\nAnd?\n", monkeypatch, server.url) == 1


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(home: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with scripted(Said(chunk("One and") + b": \n" * 3, hold=True), whole("Two")) as server:
        command = [sys.executable, "-m", "swarm", "chat", "--url", server.url]
        with Terminal(command, temporary=tmp_path / "tmp", environment={"XDG_STATE_HOME": str(home)}) as terminal:
            terminal.wait_for(">>> ")
            terminal.enter("Hi\n")
            terminal.wait_for("One and")
            terminal.press_ctrl_c()
            terminal.wait_for("stopped")
            server.gone.wait(10)
            terminal.enter("And?\n")
            terminal.wait_for("Two")
            terminal.enter("/set\n")
            terminal.wait_for("top_p")
            terminal.press_ctrl_c()
            assert terminal.wait() == 130
            assert terminal.left() == []
            assert "Traceback" not in terminal.screen
        assert server.gone.is_set()
    assert (home / "swarm" / "chat_history").read_text().splitlines() == ["Hi", "And?", "/set"]
    assert (home / "swarm" / "chat_history").stat().st_mode & 0o077 == 0
