"""A serving peer, an honest client and an attacker, each in processes of its own, and phases with and without attack.

The attacker computes only while nobody else does, as if it had a machine of its own: what is measured is what it costs
the peer. That computes with one thread, so that its other processes and the client have the rest of the cores.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil
import torch

from peers.span_memory import kv_bytes_per_token
from swarm.checkpoint import Checkpoint
from swarm.ids import Span
from tests.attacks.ground import Victim
from tests.processes import ServePeer

__all__ = ["Answer", "Arena", "Phase"]

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0
KV_TOKENS = 16_384
NEW_TOKENS = 32  # of an answer


@dataclass(frozen=True, slots=True)
class Answer:
    """`times`: when each token came; of one that failed `error` says why. `lost`: peers that seemed to fail."""

    number: int
    began: float
    lost: Sequence[str]
    times: Sequence[float] = ()
    answer: Sequence[int] = ()
    error: str | None = None

    @property
    def steps(self) -> list[tuple[float, float]]:
        """When each token after the first came, and the seconds since the one before."""
        return [(now, now - before) for before, now in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Phase:
    """`kinds`: of attack, none for a quiet one."""

    kinds: tuple[str, ...]
    begin: float
    end: float
    memory: dict[str, int]  # bytes of each of the peer's processes, at its end

    def steps(self, answers: Sequence[Answer]) -> list[float]:
        return [took for each in answers for at, took in each.steps if self.begin <= at - took and at <= self.end]


class _Child:
    """A process whose lines of output are heard."""

    def __init__(self, *arguments: str, hear: Callable[[str], object]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout, hear), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[str], hear: Callable[[str], object]) -> None:
        for line in lines:
            hear(line.rstrip())

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def close(self, limit: float = 60.0) -> None:
        """Ends its stdin, so that it ends by itself."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(limit)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(limit)
            assert self.process.stdout is not None
            self.process.stdout.close()


@dataclass(eq=False)
class Arena:
    """A context manager; `play` phases one after the other. `answers` are those of the honest client so far."""

    checkpoint: Checkpoint
    cache: Path
    seed: int
    answers: list[Answer] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # by the latest attacker
    phases: list[Phase] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _attacker: ExitStack = field(default_factory=ExitStack)
    _attack: _Child | None = None
    _news: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            options = ("--kv-cache-tokens", str(KV_TOKENS), "--cache-dir", str(self.cache), "--threads", "1")
            self.peer = stack.enter_context(ServePeer(self.checkpoint.folder, *options))
            self._address = self.peer.wait_ready(START_SECONDS).addresses[0]
            stack.enter_context(self._honest())
            stack.push(self._attacker)
            self._wait(lambda: len(self.answers) >= 2)
            self.files = self._files()  # before any attack
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def play(self, seconds: float, kinds: Sequence[str] = ()) -> Phase:
        """One phase; what is quiet begins a second after the attack has ended."""
        if kinds and self._attack is None:
            self._start_attacker()
        if self._attack is not None:
            self._attack.say(" ".join(kinds))
        time.sleep(1.0)
        begin = time.monotonic()
        time.sleep(seconds)
        phase = Phase(tuple(kinds), begin, time.monotonic(), self.memory())
        self.phases.append(phase)
        return phase

    def end_attack(self) -> None:
        """The attacker leaves; the next attack is another's."""
        self._attacker.close()
        self._attack = None

    def memory(self) -> dict[str, int]:
        """Bytes of each of the peer's processes; without files that are mapped, and without the KV cache, which takes
        memory only as it is first used."""
        blocks = Span(0, self.checkpoint.num_blocks)
        cache = KV_TOKENS * kv_bytes_per_token(self.checkpoint, blocks, torch.float32)

        def own(path: str, size: int) -> bool:
            return not path.startswith("/") and not (path == "[anon]" and size >= cache)

        return {
            name: sum(each.rss for each in process.memory_maps(grouped=False) if own(each.path, each.size))
            for name, process in self._family()
        }

    def left_open(self) -> dict[str, int]:
        """How many more files and sockets each of the peer's processes has open than before the first attack."""
        return {name: count - self.files[name] for name, count in self._files().items()}

    # --- inside -------------------------------------------------------------------------------------------------------

    def _files(self) -> dict[str, int]:
        return {name: process.num_fds() for name, process in self._family()}

    def _family(self) -> Iterator[tuple[str, psutil.Process]]:
        for process in self.peer.family():
            words = " ".join([process.name(), *process.cmdline()])
            if "p2pd" in words:
                yield "daemon", process
            else:
                yield "executor" if "swarm executor" in words else "node", process

    @contextmanager
    def _honest(self) -> Iterator[None]:
        arguments = (str(self.checkpoint.folder), str(self.cache), self._address, str(NEW_TOKENS))
        child = _Child("tests.attacks.honest", *arguments, hear=self._hear)
        try:
            yield
        finally:
            child.close()

    def _hear(self, line: str) -> None:
        values: dict[str, Any] = json.loads(line)
        with self._news:
            self.answers.append(Answer(**values))
            self._news.notify_all()

    def _start_attacker(self) -> None:
        values = self.checkpoint
        victim = Victim(self.peer.peer_id, self.peer.addresses, values.digest, values.num_blocks, values.hidden_size)
        self.said.clear()
        self._attack = _Child("tests.attacks", str(self.seed), hear=self._hear_attacker)
        self._attacker.callback(self._attack.close)
        self._attack.say(json.dumps(asdict(victim)))
        self._wait(lambda: "ready" in self.said)

    def _hear_attacker(self, line: str) -> None:
        with self._news:
            self.said.append(line)
            self._news.notify_all()

    def _wait(self, met: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(met, START_SECONDS), "the client or the attacker did not begin"
