"""What this machine can do at best, measured: the floors that a benchmark is held against."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Rates", "measure_rates", "threads", "usable_cores"]

PASSES = 5  # of which the best counts: other work only ever makes one slower
READ_BYTES = 256 << 20  # far more than caches hold
SIDE = 1024  # of the square matrices that are multiplied


@dataclass(frozen=True, slots=True)
class Rates:
    """With `threads` threads: bytes read from memory per second, and fp32 operations per second in a large product."""

    threads: int
    bandwidth: float
    flops: float

    def at_best(self, other: "Rates") -> "Rates":
        """Of two measurements: other work only ever makes one slower."""
        return Rates(self.threads, max(self.bandwidth, other.bandwidth), max(self.flops, other.flops))

    def floor(self, size: float, operations: float) -> float:
        """The least seconds for something that has to read `size` bytes and do `operations`."""
        return max(size / self.bandwidth, operations / self.flops)


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch computes with `count` threads here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_rates(count: int) -> Rates:
    """Takes about a second."""
    block = torch.ones(READ_BYTES // 4)
    square = torch.ones(SIDE, SIDE)
    with threads(count):
        reading = _best(block.sum)
        multiplying = _best(lambda: square @ square)
    return Rates(count, block.nbytes / reading, 2 * SIDE**3 / multiplying)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some passes."""
    times = []
    for _ in range(PASSES):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)
