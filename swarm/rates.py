"""What this machine can do at best, measured: the floors that a benchmark is held against."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import torch

__all__ = ["Rates", "measure_rates", "threads", "usable_cores"]

PASSES = 5  # of which the best counts: other work only ever makes one slower
READ_BYTES = 256 << 20  # far more than caches hold
SIDE = 1024  # of the square matrices that are multiplied


@dataclass(frozen=True, slots=True)
class Rates:
    """With `threads` threads: bytes read from memory per second, and operations per second in a large product, in fp32
    (`flops`), bf16 and int8."""

    threads: int
    bandwidth: float
    flops: float
    bf16: float = 0.0
    int8: float = 0.0

    def at_best(self, other: "Rates") -> "Rates":
        """Of two measurements: other work only ever makes one slower."""
        assert self.threads == other.threads
        return Rates(*map(max, astuple(self), astuple(other)))

    def operations(self, precision: str) -> float:
        """Per second, with weights in `precision`: they may be made wider, whichever is the fastest."""
        match precision:
            case "int8" | "int4":
                return max(self.int8, self.bf16, self.flops)
            case "bf16" | "fp16" | "nf4":
                return max(self.bf16, self.flops)
            case _:
                return self.flops

    def floor(self, size: float, operations: Mapping[str, float]) -> float:
        """The least seconds for something that has to read `size` bytes and do so many operations with weights of each
        precision."""
        computing = sum(count / self.operations(precision) for precision, count in operations.items())
        return max(size / self.bandwidth, computing)


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
    """Takes a second or two."""
    block = torch.ones(READ_BYTES // 4)
    square = torch.ones(SIDE, SIDE)
    half, whole = square.bfloat16(), square.to(torch.int8)
    with threads(count):
        reading = _best(block.sum)
        products = [
            _best(lambda: square @ square),
            _best(lambda: half @ half),
            _best(lambda: torch._int_mm(whole, whole)),
        ]
    return Rates(count, block.nbytes / reading, *(2 * SIDE**3 / seconds for seconds in products))


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some passes."""
    times = []
    for _ in range(PASSES):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)
