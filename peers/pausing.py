"""When a peer gives its device back by itself, and takes it again: `--pause-when`."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil

from swarm.errors import UsageError

__all__ = ["Condition", "Machine", "Pausable", "keep_pausing", "read_machine"]

LOOK_SECONDS = 5.0
STEP_BACK = 20.0  # per cent points below the limit before it takes its device again
QUIET_LOOKS = 6  # in a row without the reason, before it does
BATTERY = "battery"
_CPU = re.compile(r"cpu>(\d{1,3})")


class Pausable(Protocol):
    """What is paused: a `peers.lifecycle.Lifecycle`."""

    def pause(self, reason: str) -> None: ...
    def resume(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Machine:
    """`others`: per cent of all cores that programs other than this peer take; `battery`: whether it runs on one."""

    others: float
    battery: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """`most`: per cent that others may take; None where it is about the battery."""

    text: str
    most: float | None

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """`battery`, or `cpu>N`. Raises UsageError."""
        if text == BATTERY:
            return cls(text, None)
        found = _CPU.fullmatch(text.replace(" ", ""))
        if found is None or not STEP_BACK < float(found[1]) < 100:
            raise UsageError(
                f"--pause-when is {BATTERY}, or cpu>N with N per cent between {STEP_BACK:g} and 100 that other "
                f"programs take, not '{text}'"
            )
        return cls(text, float(found[1]))

    def holds(self, machine: Machine, paused: bool) -> bool:
        """Whether to pause; one that has paused waits until there is clearly less to do."""
        if self.most is None:
            return machine.battery
        return machine.others > self.most - (STEP_BACK if paused else 0)


async def keep_pausing(
    peer: Pausable, conditions: Sequence[Condition], read: Callable[[], Machine], every: float = LOOK_SECONDS
) -> None:
    """Pauses and resumes `peer` until cancelled. `read` may take its time; it is called in a thread."""
    quiet = dict.fromkeys(conditions, QUIET_LOOKS)  # looks in a row at which a condition did not hold
    while True:
        machine = await asyncio.to_thread(read)
        for condition in conditions:
            paused = quiet[condition] < QUIET_LOOKS
            quiet[condition] = 0 if condition.holds(machine, paused) else min(quiet[condition] + 1, QUIET_LOOKS)
            if not quiet[condition]:
                peer.pause(condition.text)
            elif quiet[condition] == QUIET_LOOKS:
                peer.resume(condition.text)
        await asyncio.sleep(every)


def read_machine() -> Callable[[], Machine]:
    """A function that looks at this machine, each time at what has happened since the last."""
    own = _Own()

    def read() -> Machine:
        total, ours = psutil.cpu_percent(), own.percent()
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        return Machine(max(0.0, total - ours), battery is not None and battery.power_plugged is False)

    return read


class _Own:
    """What this process and its children take of all cores, in per cent, since it was asked last."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def percent(self) -> float:
        this = psutil.Process()
        family = {process.pid: self._known.get(process.pid, process) for process in (this, *this.children(True))}
        self._known = family
        return sum(map(_percent, family.values())) / (psutil.cpu_count() or 1)


def _percent(process: psutil.Process) -> float:
    try:
        return float(process.cpu_percent())
    except psutil.Error:  # it has ended
        return 0.0
