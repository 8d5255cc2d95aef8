"""Serving peers on this machine, and a gateway to them, for demonstrations and measurements: real processes, identities
of their own."""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from swarm.errors import SwarmError
from swarm.ids import PeerId
from swarm.subprocesses import ServeProcess, SwarmProcess
from swarm.waiting import BRIEF

__all__ = ["GatewayProcess", "LocalSwarm"]

START_SECONDS = 180.0
WATCH_SECONDS = 1.0  # between two looks at whether a gateway still runs
LAST_LINES = 12  # of a log in an error
EXACT = "fp32"  # unless told otherwise, so that answers can be compared with those of one process
DRAIN_SECONDS = 5  # for sessions of a peer that leaves; when all of them end, nobody is there to take them


class LocalSwarm:
    """A context manager; whatever it started is gone when it ends."""

    def __init__(self, model: str, cache: Path, *, threads: int = 1) -> None:
        """`model` as others would name it, since peers show it in their join lines."""
        self.peers: list[ServeProcess] = []
        self._model = model
        self._cache = cache
        self._threads = threads
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="swarm-local-")))

    def start(self, name: str, *arguments: str) -> ServeProcess:
        """One more peer: the first begins a swarm, the others join it once it serves. Not ready when this returns."""
        way_in = ["--initial-peers", self.address] if self.peers else ["--new-swarm"]
        own = ["--identity-path", str(self._folder / f"{name}.key"), "--public-name", name]
        common = ["--cache-dir", str(self._cache), "--threads", str(self._threads), "--dtype", EXACT]
        patience = ["--drain-limit", str(DRAIN_SECONDS)]
        command = [self._model, *way_in, *own, *common, *patience, *arguments]
        environment = {**BRIEF, "OMP_NUM_THREADS": str(self._threads)}
        peer = ServeProcess(command, name=name, environment=environment)
        self.peers.append(self._stack.enter_context(peer))
        return peer

    def start_all(self, names: Sequence[str], *arguments: str) -> None:
        """Start peers and wait until all of them serve; raises SwarmError with the log of one that does not."""
        for name in names:
            self.start(name, *arguments)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until all serve; raises SwarmError with the log of one that does not."""
        for peer in self.peers:
            peer.wait_ready(START_SECONDS)

    @property
    def address(self) -> str:
        """Where to join: the first peer that is still alive."""
        return next(peer for peer in self.peers if peer.alive).wait_ready(START_SECONDS).addresses[0]

    @property
    def addresses(self) -> list[str]:
        return [peer.ready.addresses[0] for peer in self.peers if peer.alive]

    def named(self, peer_id: PeerId) -> ServeProcess:
        return next(peer for peer in self.peers if peer.ready.peer_id == peer_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for peer in self.peers:  # all at once, then one by one to the end
            if peer.alive:
                peer.terminate()
        self._stack.close()


class GatewayProcess(SwarmProcess):
    """`swarm gateway` for one model, on a free port of this machine. A context manager."""

    def __init__(self, model: str, addresses: Sequence[str], cache: Path) -> None:
        options = ("--port=0", f"--initial-peers={','.join(addresses)}", f"--cache-dir={cache}")
        super().__init__([sys.executable, "-m", "swarm", "gateway", model, *options], name="gateway")

    def wait_ready(self, limit: float = START_SECONDS) -> str:
        """Blocks until it answers; its URL. Raises SwarmError, with its last lines, if it ends or `limit` passes."""
        return str(json.loads(self.wait_line('"event": "ready"', limit))["url"])

    def wait_end(self) -> None:
        """Blocks as long as it runs. Raises SwarmError when it has ended."""
        while self.alive:
            time.sleep(WATCH_SECONDS)
        lines = "\n  ".join(self.log[-LAST_LINES:])
        raise SwarmError(f"the gateway has ended; the last it said was:\n  {lines}")
