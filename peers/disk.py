"""How fast the disk under a file reads, measured past what the system keeps in memory."""

import mmap
import os
import time
from pathlib import Path

__all__ = ["read_rate"]

CHUNK = 4 << 20  # bytes read at once
MOST = 64 << 20  # bytes read in all


def read_rate(path: Path) -> float | None:
    """Bytes per second, in order; None where this file system or this file does not let itself be measured."""
    if not hasattr(os, "O_DIRECT"):
        return None
    size, buffer = 0, mmap.mmap(-1, CHUNK)  # aligned to a page, as direct reading wants it
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    began = time.perf_counter()
    try:
        while size < MOST and (read := os.preadv(file, [buffer], size)):
            size += read
            if read % mmap.PAGESIZE:  # the last piece
                break
    except OSError:
        return None
    finally:
        os.close(file)
    return size / (time.perf_counter() - began) if size else None
