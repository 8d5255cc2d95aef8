"""Serving peers and gateways as child processes, each in a process group of its own, that never outlive the one who
started them.

They are started by the command line, as a person would, and speak JSON lines (`--log-format json`). A child leaves by
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
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from swarm.errors import SwarmError
from swarm.ids import PeerId, Span

__all__ = ["ReadyPeer", "ServeProcess", "SwarmProcess"]

KEPT_LINES = 2000  # of the log of one child
SHOWN_LINES = 12  # of it in an error
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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


class SwarmProcess:
    """One long-lived command of swarm in a process group of its own. Use it as a context manager, or call `close`.

    Blocking calls have a time limit; from asyncio, call them through `asyncio.to_thread`. Thread-safe.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is added to our own; `name` is for messages."""
        self.name = name
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._ended = False  # its output
        self._closed = False
        self._news = threading.Condition()
        with _signals_later():  # one that ends us in mid-start would leave a child that nobody knows of
            self.temporary = Path(tempfile.mkdtemp(prefix="swarm-peer-"))  # the child's TMPDIR
            try:
                self._process = _start(command, self.temporary, environment or {})
            except BaseException:
                self.temporary.rmdir()
                raise
            # Who is told to stop just now may never hand this object on, so that nobody could close it.
            self._clean = weakref.finalize(self, _clean_up, self._process, self.temporary)
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    # --- what it says -------------------------------------------------------------------------------------------

    def wait_line(self, text: str, limit: float = 60.0) -> str:
        """Blocks until a line of its log holds `text`; that line. Raises SwarmError, with its last lines, if it ends or
        `limit` seconds pass."""
        self._wait(lambda: any(text in line for line in self._lines), f"did not say '{text}'", limit)
        return next(line for line in self.log if text in line)

    @property
    def log(self) -> list[str]:
        """The latest lines of its stdout and stderr."""
        with self._news:
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
        _signal_group(self._process, signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP to the whole group: it hangs, its sockets stay open."""
        _signal_group(self._process, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to the whole group."""
        _signal_group(self._process, signal.SIGCONT)

    def abandon(self) -> None:
        """Ends its standard input, as the death of this process would."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def terminate(self) -> None:
        """SIGTERM to the peer alone, which then leaves in good order. Does not wait."""
        self._process.terminate()

    def wait(self, limit: float = GRACE) -> int:
        """Its exit status (minus the number of a signal that killed it). Raises SwarmError if it lives on."""
        try:
            code = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise SwarmError(f"the process '{self.name}' still runs after {limit:.0f} s") from None
        self._reader.join(limit)
        return code

    def close(self) -> None:
        """Ends it, in good order if it does so in some seconds; nothing of it is left behind. Safe to repeat."""
        if self._closed:
            return  # by now its number may be that of somebody else's process group
        try:
            if self.alive:
                self.resume()
                self.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE)
        finally:
            _signal_group(self._process, signal.SIGKILL)
            self._process.wait(GRACE)
            self._reader.join(GRACE)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None and not self._reader.is_alive():
                    pipe.close()
            self._clean()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _hear_ready(self, event: Mapping[str, Any]) -> None:
        """It says that it is up."""

    def _wait(self, met: Callable[[], bool], what: str, limit: float) -> None:
        with self._news:
            self._news.wait_for(lambda: met() or self._ended, limit)
            if met():
                return
        code = self._process.poll()
        ending = f"{what} after {limit:.0f} s" if code is None else f"ended with exit status {code}"
        lines = "\n  ".join(self.log[-SHOWN_LINES:]) or "(nothing)"
        raise SwarmError(f"the process '{self.name}' {ending}; the last it said was:\n  {lines}")

    def _read(self) -> None:
        pipe: IO[bytes] | None = self._process.stdout
        assert pipe is not None
        for raw in pipe:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            event = _event(line)
            with self._news:
                self._lines.append(line)
                if event is not None and event.get("event") == "ready":
                    self._hear_ready(event)
                self._news.notify_all()
        self._process.wait()  # its output has ended, so it is ending
        with self._news:
            self._ended = True
            self._news.notify_all()


class ServeProcess(SwarmProcess):
    """One `swarm serve`."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        name: str = "peer",
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "swarm", "serve"),
    ) -> None:
        """`arguments` as after `swarm serve`."""
        self._ready: ReadyPeer | None = None
        super().__init__([*command, *arguments], name=name, environment=environment)

    def wait_ready(self, limit: float = 120.0) -> ReadyPeer:
        """Blocks until it serves. Raises SwarmError, with its last lines, if it ends or `limit` seconds pass."""
        self._wait(lambda: self._ready is not None, "is not ready", limit)
        assert self._ready is not None
        return self._ready

    @property
    def ready(self) -> ReadyPeer:
        """What it said when it began to serve. Raises SwarmError before that."""
        return self.wait_ready(limit=0)

    def _hear_ready(self, event: Mapping[str, Any]) -> None:
        self._ready = ReadyPeer.from_event(event)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # everyone in it is gone
        os.killpg(process.pid, number)


def _start(command: Sequence[str], temporary: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, "--log-format", "json", "--stop-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**_without_defaults(os.environ), "TMPDIR": str(temporary), **environment},
        start_new_session=True,
    )


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """What the main thread is told to do within, it does after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[tuple[int, FrameType | None]] = []
    before = {number: signal.signal(number, lambda *what: told.append(what)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for what, frame in told:
        handler = before[signal.Signals(what)]
        if callable(handler):
            handler(what, frame)
        elif handler is signal.SIG_DFL:
            os.kill(os.getpid(), what)


def _clean_up(process: subprocess.Popen[bytes], temporary: Path) -> None:
    """Whoever still runs would go on writing into the folder."""
    if process.poll() is None:
        _signal_group(process, signal.SIGKILL)
        process.wait(GRACE)
    shutil.rmtree(temporary, ignore_errors=True)


def _event(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
