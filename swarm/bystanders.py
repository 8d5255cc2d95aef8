"""How much of this machine others use while something is measured: what a figure is worth depends on it."""

import os
import time
from types import TracebackType
from typing import Self

import psutil

__all__ = ["Bystanders", "own_seconds"]

IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests are counted among users already


class Bystanders:
    """A context manager. Afterwards `cores` says how many processors, on average, worked for others than this process
    and those below it that still live then; a hypervisor that takes them away counts as others."""

    def __init__(self) -> None:
        self.cores = 0.0
        self._begun = 0.0
        self._busy = 0.0
        self._own = 0.0

    def __enter__(self) -> Self:
        self._begun, self._busy, self._own = time.monotonic(), _busy(), own_seconds()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        others = (_busy() - self._busy) - (own_seconds() - self._own)
        self.cores = max(0.0, others / max(1e-3, time.monotonic() - self._begun))

    def __str__(self) -> str:
        if self.cores < 0.1:
            return "nothing else ran on this machine meanwhile"
        return (
            f"other work took {self.cores:.1f} of {os.cpu_count()} processors meanwhile: these figures are worth less"
        )


def _busy() -> float:
    """Seconds of work of all processors since the machine started."""
    times = psutil.cpu_times()._asdict()
    return sum(float(seconds) for name, seconds in times.items() if name not in IDLE)


def own_seconds() -> float:
    """Processor seconds of this process and those below it that live."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
