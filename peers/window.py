"""Blocks that pass through memory: each is there for its turn in a step, and let go of after it. Here they are read
from disk; into a GPU's memory they come from main memory (`peers.offload`).

All rows that wait go through a block while it is there. Which blocks pass is fixed, since they come round in the same
order in every step: of n blocks in turn, what was used longest ago is always what is wanted next, so that a cache of
the latest ones would never have the right one. Those that pass lie evenly between those that stay, and the next one is
asked for when one begins, so the disk reads while others compute.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from torch import nn

from peers.disk import read_rate
from swarm.errors import UsageError
from swarm.mapping import MappedFile

__all__ = ["Passage", "Window", "passing_blocks"]


class Passage(Protocol):
    """Through which the weights of a span pass that don't all stay on its device."""

    count: int  # blocks that pass
    size: int  # bytes that each step brings
    name: str  # what of all this speed depends on
    source: str  # from where they come

    def open(self, index: int) -> AbstractContextManager[None]:
        """Within, block `index` of the span is wanted."""
        ...

    def trying(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within, a module can compute that may take a layer's place."""
        ...

    def rate(self) -> float | None:
        """Bytes per second from the source; None where that can't be measured."""
        ...


class Window:
    """`files`: of a span's blocks, in order. `room`: how many bytes of them may be in memory at once. Raises UsageError
    when not even one block at a time fits."""

    source = "disk"

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

    def trying(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def rate(self) -> float | None:
        return read_rate(next(iter(self._files.values())).path)


def passing_blocks(sizes: Sequence[int], room: int, *, at_once: int = 1, flag: str = "--max-memory") -> list[int]:
    """Which of the blocks of these sizes have to pass, so that all others and so many of them `at_once` take at most
    `room` bytes. Raises UsageError, naming the `flag`, when that can't be."""
    total = sum(sizes)
    for count in range(len(sizes) + 1):
        passing = [
            index for index in range(len(sizes)) if (index + 1) * count // len(sizes) > index * count // len(sizes)
        ]
        largest = max((sizes[index] for index in passing), default=0)
        held = total - sum(sizes[index] for index in passing) + at_once * largest
        if held <= room:
            return passing
    least = "one block takes" if at_once == 1 else f"{at_once} blocks at a time take"
    raise UsageError(
        f"{least} {at_once * max(sizes)} bytes of memory and {room} are left for weights: give a larger {flag}, "
        "fewer --kv-cache-tokens, or --quantization"
    )
