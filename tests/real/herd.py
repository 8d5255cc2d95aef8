"""Real peers of the real model on this machine, for tests: kept at full strength, and hurt on purpose.

Blocks are given by hand here, so that a test knows whom it hurts; placement has tests of its own.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from clients.connection import Connection
from clients.local_swarm import LocalSwarm
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, Span
from swarm.subprocesses import ServeProcess

__all__ = ["KV_TOKENS", "Herd", "daemon", "executor", "family", "still_there", "wait_until_free"]

START_SECONDS = 180.0
FREE_SECONDS = 60.0  # a record is announced every 20
KV_TOKENS = 16_384  # of each peer
GONE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class _Member:
    span: Span
    process: ServeProcess


class Herd:
    """A context manager. `ensure` it, hurt it, `ensure` it again."""

    def __init__(self, checkpoint: Checkpoint, cache: Path) -> None:
        self.checkpoint = checkpoint
        self.cache = cache
        self.swarm = LocalSwarm(str(checkpoint.folder), cache, threads=1)
        self.seen: list[psutil.Process] = []  # every process there ever was
        self._members: list[_Member] = []
        self._started = 0

    def ensure(self, copies: Mapping[Span, int]) -> None:
        """At least so many serving peers of each span: the dead are buried, and as many begin as are missing."""
        self.bury()
        fresh = [self.start(span) for span, count in copies.items() for _ in range(count - len(self.of(span)))]
        for process in fresh:
            process.wait_ready(START_SECONDS)
            self.seen += family(process)

    def start(self, span: Span, *more: str) -> ServeProcess:
        """One more peer, which is not ready yet. The first one of all begins the swarm, and is waited for."""
        self._started += 1
        options = ("--blocks", str(span), "--host", "127.0.0.1", "--port", "0", "--kv-cache-tokens", str(KV_TOKENS))
        process = self.swarm.start(f"peer{self._started}-{span.start}", *options, *more)
        self._members.append(_Member(span, process))
        if len(self._members) == 1:
            process.wait_ready(START_SECONDS)  # the others need somebody to join
        return process

    def bury(self) -> None:
        """Take the dead off the books and remove what they have left."""
        for member in [m for m in self._members if not m.process.alive]:
            self._members.remove(member)
            self.swarm.peers.remove(member.process)
            member.process.close()

    def kill(self, process: ServeProcess) -> None:
        """SIGKILL to the whole of it; it is dead when this returns, and its sockets are closed."""
        process.kill()
        process.wait()

    def of(self, span: Span) -> list[ServeProcess]:
        """The peers of exactly these blocks that are alive."""
        return [m.process for m in self._members if m.span == span and m.process.alive]

    def named(self, peer: PeerId) -> ServeProcess:
        return next(m.process for m in self._members if m.process.ready.peer_id == peer)

    @property
    def living(self) -> list[ServeProcess]:
        return [m.process for m in self._members if m.process.alive]

    @property
    def addresses(self) -> list[str]:
        return [process.ready.addresses[0] for process in self.living]

    def left_behind(self) -> list[psutil.Process]:
        """Processes of this herd that still run although it has ended."""
        return still_there(self.seen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.swarm.__exit__(kind, error, at)


def family(process: ServeProcess) -> list[psutil.Process]:
    """A peer's network process and all below it, while it lives."""
    peer = psutil.Process(process.pid)
    return [peer, *peer.children(recursive=True)]


def executor(process: ServeProcess) -> psutil.Process:
    return next(one for one in family(process)[1:] if one.name() == "swarm executor")


def daemon(process: ServeProcess) -> psutil.Process:
    return next(one for one in family(process)[1:] if "p2pd" in one.name())


def wait_until_free(living: Iterable[ServeProcess], model: SwarmModelForCausalLM) -> None:
    """Until every one has announced, later than now, that of its KV_TOKENS nobody holds any. `model`: any client's.
    Fails after FREE_SECONDS."""
    connection = model._connection
    assert isinstance(connection, Connection)
    peers = {process.ready.peer_id for process in living}
    begun, deadline = time.time(), time.monotonic() + FREE_SECONDS
    left: dict[PeerId, int] = {}
    while left != dict.fromkeys(peers, KV_TOKENS):
        assert time.monotonic() < deadline, f"of {KV_TOKENS} tokens each peer has free: {left}"
        connection.call(connection.client.change(0.5))
        records = [record for record in connection.client.view.peers if record.peer in peers]
        left = {record.peer: record.cache_left for record in records if record.issued > begun}


def still_there(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return list(psutil.wait_procs(list(processes), GONE_SECONDS)[1])
