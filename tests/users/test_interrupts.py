"""Ctrl-C in a terminal, and being told to stop: commands end soon, with the right code, and leave nothing behind."""

import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from swarm.subprocesses import ServeProcess
from tests.users.terminal import Terminal

SWARM = (sys.executable, "-m", "swarm")
NOT_OURS = "torchinductor"  # a cache of torch's own, which it makes where temporary files are


def left(terminal: Terminal) -> list[str]:
    return [name for name in terminal.left() if NOT_OURS not in name]


def test_ctrl_c_ends_a_peer_in_good_order(model: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    options = ("--new-swarm", "--host=127.0.0.1", "--port=0", f"--cache-dir={cache}", f"--identity-path={tmp_path}/key")
    with Terminal([*SWARM, "serve", str(model), *options], temporary=tmp_path / "tmp") as terminal:
        terminal.wait_for("Join with another machine")
        terminal.press_ctrl_c()
        assert terminal.wait() == 130
        assert left(terminal) == []
        assert "Traceback" not in terminal.screen


def test_ctrl_c_ends_an_answer(model: Path, cache: Path, peer: ServeProcess, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    options = ("--initial-peers", peer.ready.addresses[0], "--max-new-tokens=500", f"--cache-dir={cache}")
    with Terminal([*SWARM, "run", str(model), "one two", *options], temporary=tmp_path / "tmp") as terminal:
        terminal.wait_for("chain in")
        terminal.press_ctrl_c()
        assert terminal.wait() == 130
        assert left(terminal) == []
        assert "Traceback" not in terminal.screen


@pytest.mark.soak  # two swarms are started
def test_ctrl_c_ends_a_benchmark_with_all_that_it_started(model: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    command = [*SWARM, "bench", "wan", str(model), "--peers=2", "--rounds=50", f"--cache-dir={cache}"]
    with Terminal(command, temporary=tmp_path / "tmp") as terminal:
        terminal.wait_for("warm-up")
        terminal.press_ctrl_c()
        assert terminal.wait(60) == 130
        assert left(terminal) == []
        assert "Traceback" not in terminal.screen


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo_that_is_ended_takes_its_peers_along(
    model: Path, cache: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "tmp").mkdir()
    command = [*SWARM, "demo", "--model", str(model), f"--cache-dir={cache}"]
    with Terminal(command, temporary=tmp_path / "tmp") as terminal:
        terminal.wait_for("A swarm for")
        if number is signal.SIGINT:
            terminal.press_ctrl_c()
        else:
            os.kill(terminal.pid, number)
        assert terminal.wait(60) == code
        assert left(terminal) == []
        assert "Traceback" not in terminal.screen


@pytest.mark.soak  # four peers and a gateway are started
def test_demo_that_stays_has_a_page_until_it_is_ended(model: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    command = [*SWARM, "demo", "--stay", "--model", str(model), f"--cache-dir={cache}", "--max-new-tokens=32"]
    with Terminal(command, temporary=tmp_path / "tmp", environment={"COLUMNS": "200"}) as terminal:
        terminal.wait_for("Ctrl-C stops everything", 120)
        (page,) = re.findall(r"chat page +(http://\S+)", terminal.screen)
        with urllib.request.urlopen(page, timeout=10) as response:
            assert response.status == 200
        terminal.press_ctrl_c()
        assert terminal.wait(60) == 130
        assert left(terminal) == []
        assert "Traceback" not in terminal.screen
