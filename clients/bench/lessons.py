"""Clients that train at once, each in a process of its own (`clients.bench.learner_process`)."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from swarm.errors import SwarmError
from swarm.waiting import BRIEF

__all__ = ["Lesson", "Lessons"]

ROOT = Path(__file__).resolve().parents[2]  # where `clients` can be imported from
END_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """What each of them is to do: steps of `rows` times `length` tokens, with `threads`. The model is in `folder`."""

    folder: str
    initial_peers: Sequence[str]
    cache: str
    threads: int
    rows: int
    length: int


class Lessons:
    """A context manager; entered, all of `clients` are ready. Raises SwarmError when one of them ends by itself."""

    def __init__(self, lesson: Lesson, clients: int) -> None:
        self._lesson = lesson
        self._count = clients
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def seconds(self, clients: int, *, first: int, steps: int) -> float:
        """That the first `clients` take, at once, for so many steps each; `first`: the number of the first batch, which
        is the same for all. The others rest."""
        working = self._processes[:clients]
        begun = perf_counter()
        for process in working:
            _tell(process, {"first": first, "steps": steps})
        for process in working:
            _hear(process)
        return perf_counter() - begun

    def __enter__(self) -> Self:
        environment = {**os.environ, **BRIEF, "OMP_NUM_THREADS": str(self._lesson.threads)}
        try:
            for _ in range(self._count):
                process = subprocess.Popen(
                    [sys.executable, "-m", "clients.bench.learner_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env=environment,
                    start_new_session=True,  # a Ctrl-C is for us, who end them
                )
                self._processes.append(process)
                self._stack.callback(_end, process)
                _tell(process, asdict(self._lesson))
            for process in self._processes:
                _hear(process)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


def _tell(process: subprocess.Popen[str], values: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(values) + "\n")
        process.stdin.flush()
    except OSError:
        pass  # it has ended, which is noticed when it is heard


def _hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SwarmError("a process that trains ended by itself; what it said is above")
    values: dict[str, Any] = json.loads(line)
    return values


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.communicate(timeout=END_SECONDS)
    except (subprocess.TimeoutExpired, ValueError, OSError):
        pass  # it was hurt, or is still at work
    finally:
        process.kill()
        process.wait()
