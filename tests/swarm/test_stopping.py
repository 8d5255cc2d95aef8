"""Processes that are told to stop, each a few lines of Python."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHILD = """
import asyncio, sys, time
from swarm.stopping import until_told

async def work():
    try:
        print("working", flush=True)
        await asyncio.Event().wait()
    finally:
        print("leaving", flush=True)
        {leaving}
        print("left", flush=True)

sys.exit(asyncio.run(until_told(work(), stdin=True)))
"""


class Child:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def say(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def child(leaving: str) -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.format(leaving=leaving)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Child(process)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)], ids=lambda value: str(value)
)
def test_signal_lets_the_work_leave_in_good_order(number: signal.Signals, status: int) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored by all that is started here, as under nohup")
    with child("await asyncio.sleep(0)") as running:
        assert running.say() == "working"
        running.process.send_signal(number)
        assert (running.say(), running.say()) == ("leaving", "left")
        assert running.process.wait(30) == status


def test_end_of_standard_input_does_too() -> None:
    with child("await asyncio.sleep(0)") as running:
        assert running.say() == "working"
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert (running.say(), running.say()) == ("leaving", "left")
        assert running.process.wait(30) == 0


def test_second_signal_cuts_the_leaving_short() -> None:
    with child("await asyncio.Event().wait()") as running:
        assert running.say() == "working"
        running.process.terminate()
        assert running.say() == "leaving"
        running.process.terminate()
        assert running.process.wait(30) == 0
        assert running.say() == ""


def test_second_signal_ends_even_what_does_not_let_itself_be_cut_short() -> None:
    stubborn = "await asyncio.to_thread(time.sleep, 1000)"
    with child(stubborn) as running:
        assert running.say() == "working"
        running.process.terminate()
        assert running.say() == "leaving"
        running.process.terminate()
        assert running.process.wait(30) == 128 + signal.SIGTERM


def test_failure_while_leaving_is_no_failure_of_the_process() -> None:
    with child("raise RuntimeError('the daemon is gone already')") as running:
        assert running.say() == "working"
        running.process.terminate()
        assert running.say() == "leaving"
        assert running.process.wait(30) == 0
