"""What runs on this machine for this user: a small file for each peer and each gateway, while it runs.

A process that is killed leaves its file behind; whoever reads it finds that no process has that number, or that it
began at another time, and removes it.
"""

import json
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from swarm import atomic

__all__ = ["PAUSE", "RESUME", "Running", "announce_running", "running", "state_folder"]

PAUSE, RESUME = signal.SIGUSR1, signal.SIGUSR2  # what tells a peer that runs to do so

_log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 16  # of one file
_SAME = 1.0  # seconds by which the system may round when a process began


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """`kind`: "peer" or "gateway". `started`: Unix time when the process began; `address`: where it can be reached,
    a multiaddress or a URL."""

    pid: int
    started: float
    kind: str
    models: tuple[str, ...]
    blocks: str | None = None
    address: str | None = None
    name: str = ""

    @classmethod
    def here(cls, kind: str, **fields: Any) -> Self:
        """Of this process."""
        return cls(pid=os.getpid(), started=psutil.Process().create_time(), kind=kind, **fields)

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            ended = process.status() == psutil.STATUS_ZOMBIE
            return not ended and abs(process.create_time() - self.started) <= _SAME
        except psutil.Error:
            return False


def state_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Where a user's state is kept. As the XDG specification says, a folder that is not absolute is ignored."""
    folder = Path(environ.get("XDG_STATE_HOME", ""))
    return (folder if folder.is_absolute() else home / ".local" / "state") / "swarm"


@contextmanager
def announce_running(this: Running, folder: Path) -> Iterator[None]:
    """Tell `running` of this process until the end of the block. A folder that can't be written is only logged."""
    path = folder / "running" / f"{this.pid}-{this.kind}.json"
    try:
        atomic.write_file(path, json.dumps(asdict(this)).encode())
    except OSError as error:
        _log.info("`swarm ps` will not show this process: %s", error)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def running(folder: Path) -> tuple[Running, ...]:
    """What runs now, the oldest first; files of what does not are removed."""
    found = []
    for path in sorted((folder / "running").glob("*.json")):
        this = _read(path)
        if this is not None and this.alive:
            found.append(this)
        else:
            with suppress(OSError):
                path.unlink()
    return tuple(sorted(found, key=lambda this: this.started))


def _read(path: Path) -> Running | None:
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(_MOST_BYTES))
        this = Running(**{**fields, "models": tuple(fields["models"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return this if isinstance(this.pid, int) and isinstance(this.started, float) else None
