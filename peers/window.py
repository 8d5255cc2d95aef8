"""Blocks that pass through memory: each is read from disk for its turn in a step, and let go of after it.

All rows that wait go through a block while it is there. Which blocks pass is fixed, since they come round in the same
order in every step: of n blocks in turn, what was used longest ago is always what is wanted next, so that a cache of
the latest ones would never have the right one. Those that pass lie evenly between those that stay, and the next one is
asked for when one begins, so the disk reads while others compute.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swarm.errors import UsageError
from swarm.mapping import MappedFile

__all__ = ["Window", "passing_blocks"]


class Window:
    """`files`: of a span's blocks, in order. `room`: how many bytes of them may be in memory at once. Raises UsageError
    when not even one block at a time fits."""

    def __init__(self, files: Sequence[MappedFile], room: int) -> None:
        self._all = list(files)
        self._room = room
        self._plan()

    def _plan(self) -> None:
        sizes = [len(file) for file in self._all]
        passing = passing_blocks(sizes, self._room)
        self.count = len(passing)
        self.size = sum(sizes[index] for index in passing)  # bytes that each step reads
        self.name = f"{self.count} of {len(sizes)} blocks, {self.size} bytes"
        self._files = {index: self._all[index] for index in passing}
        self._next = dict(zip(passing, passing[1:] + passing[:1], strict=True))

    def replace(self, index: int, file: MappedFile) -> None:
        """Block `index` is in another file from now on."""
        self._all[index].let_go()
        self._all[index] = file
        self._plan()

    @contextmanager
    def open(self, index: int) -> Iterator[None]:
        """Within, block `index` of the span is wanted."""
        file = self._files.get(index)
        if file is None:
            yield
            return
        following = self._files[self._next[index]]
        following.expect()
        try:
            yield
        finally:
            file.let_go()
            if following is file:  # it was there when it was asked for
                following.expect()

    @property
    def example(self) -> Path:
        """A file that each step reads."""
        return next(iter(self._files.values())).path


def passing_blocks(sizes: Sequence[int], room: int) -> list[int]:
    """Which of the blocks of these sizes have to pass, so that all others and any one of them take at most `room`
    bytes. Raises UsageError when no block fits."""
    total = sum(sizes)
    for count in range(len(sizes) + 1):
        passing = [
            index for index in range(len(sizes)) if (index + 1) * count // len(sizes) > index * count // len(sizes)
        ]
        held = total - sum(sizes[index] for index in passing) + max((sizes[index] for index in passing), default=0)
        if held <= room:
            return passing
    raise UsageError(
        f"one block takes {max(sizes)} bytes of memory and {room} are left for weights: give a larger --max-memory, "
        "fewer --kv-cache-tokens, or --quantization"
    )
