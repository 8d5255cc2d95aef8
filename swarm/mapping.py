"""A file in memory: read when it is touched, and let go of when it is not needed.

Where Linux says "not needed", the pages leave this process at once; the system keeps them as long as nobody else wants
the memory, and then the next touch costs no read.
"""

import mmap
import sys
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["LETS_GO", "MappedFile"]

LETS_GO = sys.platform == "linux"  # elsewhere "not needed" is a hint that may change nothing


class MappedFile:
    """`content`: the bytes of one file, uint8; as long as a view of them lives, they stay mapped. What is written to
    them never gets into the file, and is lost by `let_go`. Raises OSError, and ValueError when the file is empty."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.path = path
        self.content: Tensor = torch.frombuffer(self._map, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._map)

    def expect(self) -> None:
        """Has the system begin to read the file, if it does not have it in memory. Returns at once."""
        if LETS_GO:
            self._map.madvise(mmap.MADV_WILLNEED)

    def let_go(self) -> None:
        """None of the file is in this process's memory from now on, until it is touched again."""
        if LETS_GO:
            self._map.madvise(mmap.MADV_DONTNEED)
