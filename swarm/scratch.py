"""Private folders for sockets, which vanish with the process that made them.

A process that is killed can't clean up. So each folder holds a lock file, locked for as long as its process lives, and
whoever makes a new folder first removes those whose lock is free.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

__all__ = ["Scratch"]

_PREFIX = "swarm-sockets-"
_DRAFT = ".swarm-draft-"
_LOCK = "lock"
_MAX_PATH = 60  # bytes; a unix socket's whole path may have about 100


class Scratch:
    """A folder with mode 0700, removed by `close` or at the end of the process."""

    def __init__(self) -> None:
        root = _root()
        _sweep(root)
        draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=root))
        lock = os.open(draft / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = draft.rename(root / (_PREFIX + draft.name.removeprefix(_DRAFT)))  # no one sees it unlocked
        self.close = weakref.finalize(self, _remove, self.path, lock)


def _root() -> Path:
    root = Path(tempfile.gettempdir())
    return root if len(os.fsencode(root)) <= _MAX_PATH else Path("/tmp")


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _sweep(root: Path) -> None:
    """Remove what dead processes of this user have left."""
    for path in root.glob(_PREFIX + "*"):
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # someone else's, or gone meanwhile
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            _remove(path, lock)
