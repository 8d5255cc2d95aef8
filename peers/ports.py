"""Which port a peer listens at: the usual one for the first on a machine, so that its address stays."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers.identity_lock import try_lock
from swarm.entrance import USUAL_PORT

__all__ = ["hold_port"]


@contextmanager
def hold_port(host: str, wanted: int | None, data: Path) -> Iterator[int]:
    """`wanted`, or else the usual port if nobody has it, or else 0: one that the system picks.

    Of one user's peers, whose folder `data` is, only one gets the usual port until the end of the block, even if
    several start at once: libp2p would let them share it, and each get the other's connections."""
    if wanted is not None:
        yield wanted
        return
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data / f"port-{USUAL_PORT}"
    path.touch()
    descriptor = try_lock(path)
    try:
        yield USUAL_PORT if descriptor is not None and _is_free(host, USUAL_PORT) else 0
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
