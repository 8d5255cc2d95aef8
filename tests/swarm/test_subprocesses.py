"""Child processes that say they are ready, hang, die, or leave children behind; each a few lines of Python."""

import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from swarm.errors import SwarmError
from swarm.ids import Span
from swarm.subprocesses import ServeProcess
from tests.endings import wait_for_end

READY = json.dumps(
    {
        "event": "ready",
        "peer_id": "12D3KooWabc",
        "addresses": ["/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWabc"],
        "model": "tiny",
        "blocks": [2, 5],
        "reason": "no live peer holds them",
        "join": "swarm-serve tiny --initial-peers …",
    }
)
UNTIL_STDIN_ENDS = "sys.stdin.read()"


def child(*lines: str) -> ServeProcess:
    return ServeProcess([], command=(sys.executable, "-c", "\n".join(["import os, sys, subprocess, time", *lines])))


def say(text: str) -> str:
    return f"print({text!r}, flush=True)"


def test_ready_line_is_found_among_other_lines() -> None:
    with child(say("warming up"), say('{"event": "resolve"}'), say(READY), UNTIL_STDIN_ENDS) as process:
        ready = process.wait_ready(30)
        assert ready.blocks == Span(2, 5)
        assert ready.addresses == ("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWabc",)
        assert [event["event"] for event in process.events] == ["resolve", "ready"]
        assert process.log[0] == "warming up"


def test_child_hears_nothing_of_what_the_user_set_for_other_swarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_INITIAL_PEERS", "/ip4/192.0.2.1/tcp/31330")
    names = "sorted(name for name in os.environ if name.startswith('SWARM_'))"
    with child(f"print({names}, os.environ['SWARM_CONFIG'], flush=True)", say(READY), UNTIL_STDIN_ENDS) as process:
        process.wait_ready(30)
        assert process.log[0] == f"['SWARM_CONFIG'] {os.devnull}"


def test_child_that_ends_early_is_reported_with_its_last_words() -> None:
    with (
        child(say("no such model"), "sys.exit(3)") as process,
        pytest.raises(SwarmError, match=r"(?s)exit status 3.*no such"),
    ):
        process.wait_ready(30)


def test_child_that_is_not_ready_in_time_is_reported_as_such() -> None:
    with child(UNTIL_STDIN_ENDS) as process, pytest.raises(SwarmError, match="not ready"):
        process.wait_ready(0.01)


def test_kill_takes_grandchildren_along() -> None:
    grandchild = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])"
    with child(f"other = {grandchild}", "print(other.pid, flush=True)", say(READY), UNTIL_STDIN_ENDS) as process:
        process.wait_ready(30)
        other = psutil.Process(int(process.log[0]))
        process.kill()
        assert process.wait() == -9
        wait_for_end(other)


def test_stopped_child_hangs_and_goes_on_when_resumed() -> None:
    with child(say(READY), "print(sys.stdin.read(), flush=True)") as process:
        process.wait_ready(30)
        process.stop()
        assert process.alive
        process.resume()
        process.terminate()
        assert process.wait() == -15


def test_close_removes_what_the_child_left_in_its_temporary_folder() -> None:
    leave = "import tempfile; print(tempfile.mkdtemp(), flush=True)"
    with child(leave, say(READY), UNTIL_STDIN_ENDS) as process:
        process.wait_ready(30)
        left = Path(process.log[0])
        assert left.is_dir()
    assert not left.exists()
    assert not process.alive


def test_close_ends_a_child_that_is_stopped() -> None:
    with child(say(READY), UNTIL_STDIN_ENDS) as process:
        process.wait_ready(30)
        process.stop()
    assert not process.alive
