"""Serving peers as child processes, each in a process group of its own, that never outlive the one who started them.

Peers are started by the command line, as a person would, and speak JSON lines (`--log-format json`). A child leaves by
itself when its standard input ends (`--stop-with-stdin`): even a SIGKILL of the parent leaves no process behind.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from swarm.errors import SwarmError
from swarm.ids import PeerId, Span

__all__ = ["ReadyPeer", "ServeProcess"]

KEPT_LINES = 2000  # of the log of one child
SHOWN_LINES = 12  # of it in an error
GRACE = 15.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True, slots=True)
class ReadyPeer:
    """What a serving peer says of itself once it serves; `join` is the command line that others paste to join it."""

    peer_id: PeerId
    addresses: tuple[str, ...]
    model: str
    blocks: Span
    reason: str
    join: str

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Self:
        start, end = event["blocks"]
        return cls(
            peer_id=PeerId(event["peer_id"]),
            addresses=tuple(event["addresses"]),
            model=event["model"],
            blocks=Span(start, end),
            reason=event["reason"],
            join=event["join"],
        )


def _without_defaults(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a user sets for `swarm` at large, such as another swarm to join."""
    kept = {name: value for name, value in environ.items() if not name.startswith("SWARM_")}
    return {**kept, "SWARM_CONFIG": os.devnull, "PYTHONUNBUFFERED": "1"}


class ServeProcess:
    """One `swarm serve` in a process group of its own. Use it as a context manager, or call `close`.

    Blocking calls have a time limit; from asyncio, call them through `asyncio.to_thread`. Thread-safe.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        name: str = "peer",
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "swarm", "serve"),
    ) -> None:
        """`arguments` as after `swarm serve`; `environment` is added to our own; `name` is for messages."""
        self.name = name
        self._folder = Path(tempfile.mkdtemp(prefix="swarm-peer-"))  # the child's TMPDIR
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._ready: ReadyPeer | None = None
        self._news = threading.Event()  # set once it is ready, or has ended
        self._process = subprocess.Popen(
            [*command, *arguments, "--log-format", "json", "--stop-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**_without_defaults(os.environ), "TMPDIR": str(self._folder), **(environment or {})},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    # --- what it says -------------------------------------------------------------------------------------------

    def wait_ready(self, limit: float = 120.0) -> ReadyPeer:
        """Blocks until it serves. Raises SwarmError, with its last lines, if it ends or `limit` seconds pass."""
        self._news.wait(limit)
        if self._ready is not None:
            return self._ready
        code = self._process.poll()
        what = f"is not ready after {limit:.0f} s" if code is None else f"ended with exit status {code}"
        lines = "\n  ".join(self.log[-SHOWN_LINES:]) or "(nothing)"
        raise SwarmError(f"the serving process '{self.name}' {what}; the last it said was:\n  {lines}")

    @property
    def ready(self) -> ReadyPeer:
        """What it said when it began to serve. Raises SwarmError before that."""
        return self.wait_ready(limit=0)

    @property
    def log(self) -> list[str]:
        """The latest lines of its stdout and stderr."""
        return list(self._lines)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Those lines of the log that are JSON objects."""
        return [event for event in map(_event, self.log) if event is not None]

    # --- what becomes of it -------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the whole group, as when the power goes: nothing is said to anyone. Does not wait."""
        self._signal_group(signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP to the whole group: it hangs, its sockets stay open."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to the whole group."""
        self._signal_group(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM to the peer alone, which then leaves in good order. Does not wait."""
        self._process.terminate()

    def wait(self, limit: float = GRACE) -> int:
        """Its exit status (minus the number of a signal that killed it). Raises SwarmError if it lives on."""
        try:
            code = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise SwarmError(f"the serving process '{self.name}' still runs after {limit:.0f} s") from None
        self._reader.join(limit)
        return code

    def close(self) -> None:
        """Ends it, in good order if it does so in some seconds; nothing of it is left behind. Safe to repeat."""
        try:
            if self.alive:
                self.resume()
                self.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE)
        finally:
            self._signal_group(signal.SIGKILL)
            self._process.wait(GRACE)
            self._reader.join(GRACE)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None and not self._reader.is_alive():
                    pipe.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # everyone in it is gone
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        pipe: IO[bytes] | None = self._process.stdout
        assert pipe is not None
        for raw in pipe:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self._lines.append(line)
            event = _event(line)
            if event is not None and event.get("event") == "ready":
                self._ready = ReadyPeer.from_event(event)
                self._news.set()
        self._process.wait()  # its output has ended, so it is ending
        self._news.set()


def _event(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
