"""How long peers live and how they end, and which blocks somebody served meanwhile."""

import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from swarm.ids import Span

__all__ = ["Ending", "Ledger", "Life", "Service", "gaps", "lives"]

SHORTEST, LONGEST = 30.0, 120.0  # s


class Ending(StrEnum):
    """`CUT`: the network is gone first, and the peer, which does not know why nobody answers, some time later."""

    KILLED = "killed"
    TOLD = "told to leave"
    CUT = "cut off"


@dataclass(frozen=True, slots=True)
class Life:
    """`seconds` of serving; `heir`: who comes next has the same identity."""

    seconds: float
    ending: Ending
    heir: bool


def lives(draw: random.Random) -> Iterator[Life]:
    """Without end."""
    while True:
        ending = draw.choice(list(Ending))
        yield Life(draw.uniform(SHORTEST, LONGEST), ending, ending is Ending.KILLED and draw.random() < 0.5)


@dataclass(frozen=True, slots=True)
class Service:
    """Somebody served `span` between two moments; `until` None: still does."""

    span: Span
    since: float
    until: float | None = None


class Ledger:
    """Who served what, as seen from outside. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._services: dict[int, Service] = {}

    def begin(self, span: Span, now: float) -> int:
        """A number to end it by."""
        with self._lock:
            self._services[len(self._services)] = Service(span, now)
            return len(self._services) - 1

    def end(self, number: int, now: float) -> None:
        with self._lock:
            self._services[number] = replace(self._services[number], until=now)

    def gaps(self, blocks: Span, since: float, until: float) -> list[tuple[float, float]]:
        """When some block was served by nobody."""
        with self._lock:
            return gaps(list(self._services.values()), blocks, since, until)


def gaps(services: list[Service], blocks: Span, since: float, until: float) -> list[tuple[float, float]]:
    """The times between two moments at which some of `blocks` was served by nobody, in order."""
    turns = {since, until}
    for service in services:
        turns |= {turn for turn in (service.since, service.until) if turn is not None and since < turn < until}
    times = sorted(turns)
    found: list[tuple[float, float]] = []
    for begin, end in itertools.pairwise(times):
        there = [s.span for s in services if s.since <= begin and (s.until is None or s.until >= end)]
        if all(any(block in span for span in there) for block in blocks):
            continue
        if found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found
