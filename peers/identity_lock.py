"""One identity, one process: two peers with the same id would take each other's streams.

The identity file itself is locked, so that nothing else has to be left on disk, and the kernel frees it however the
process ends. Without a name, a process takes the first free one of `identity`, `identity-2`, … in the data folder: a
second peer on the same machine just works, and both find their identity again when they are started again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swarm.errors import IdentityError
from swarm.identity import Identity

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

__all__ = ["hold_identity", "try_lock"]

MOST_PEERS = 64  # with identities of the data folder, on one machine


@contextmanager
def hold_identity(path: Path | None, data: Path) -> Iterator[tuple[Identity, Path]]:
    """The identity at `path`, or the first free one in the folder `data`, and where it is; nobody else can hold it
    meanwhile. Raises IdentityError when it is in use or can't be read."""
    for candidate in [path] if path is not None else _candidates(data):
        identity = Identity.load_or_create(candidate)
        descriptor = try_lock(candidate)
        if descriptor is None:
            continue
        try:
            yield identity, candidate
        finally:
            os.close(descriptor)
        return
    if path is not None:
        raise IdentityError(
            f"another process on this machine uses the identity {path}: stop it, or give another --identity-path"
        )
    raise IdentityError(f"all {MOST_PEERS} identities in {data} are in use; give --identity-path")


def _candidates(data: Path) -> list[Path]:
    return [data / ("identity" if number == 1 else f"identity-{number}") for number in range(1, MOST_PEERS + 1)]


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock until it is closed, or None when another process has it."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    if fcntl is None:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise IdentityError(
            f"{path} can't be locked: {error.strerror}; give --identity-path and --port, or another data folder"
        ) from error
    return descriptor
