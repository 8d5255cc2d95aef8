"""Keeps one peer's record in the directory: regularly, and at once when something about it changes.

A directory that can't be reached is logged and tried again; a peer that serves goes on serving.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from swarm.directory import Directory
from swarm.errors import NetworkError, RecordError
from swarm.passing import pass_time
from swarm.record import PeerRecord, PeerState
from swarm.sealing import CLOCK_TOLERANCE

__all__ = ["Announcer", "Load", "Timing"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A record outlives two announcements that fail."""

    period: float = 20.0
    lifetime: float = 60.0
    patience: float = 15.0  # for one announcement
    first_retry: float = 1.0  # doubles up to `period`
    farewell: float = 3.0  # for the last announcement


@dataclass(frozen=True, slots=True)
class Load:
    """What changes all the time: tokens of KV that can still be reserved, tokens that wait or are computed."""

    cache_left: int
    queue: int


class Announcer:
    """Owns the record of one peer. `record`'s `issued` and `expires` are set anew for each announcement."""

    def __init__(
        self,
        directory: Directory,
        record: PeerRecord,
        load: Callable[[], Load],
        *,
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._record = record
        self._load = load
        self._timing = timing
        self._clock = clock
        self._issued = 0.0
        self._changed = asyncio.Event()
        self._known = asyncio.Event()  # set while the directory has the record as it is
        self._failures = 0

    @property
    def record(self) -> PeerRecord:
        return self._record

    def change(self, **fields: Any) -> None:
        """Other fields of the record, announced soon by `run`."""
        self._record = replace(self._record, **fields)
        self._known.clear()
        self._changed.set()

    async def announce(self) -> None:
        """The record as it is now. Raises NetworkError if nobody took it in time, RecordError if it can't be one."""
        await self._announce(self._timing.patience)

    async def announced(self) -> bool:
        """Wait until `run` has announced the last change, but not for ever; returns whether it has."""
        try:
            async with asyncio.timeout(self._timing.patience):
                await self._known.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Announce on every change and every period, until cancelled; now, if that has not been done."""
        if self._known.is_set():
            await self._pause(self._timing.period)
        while True:
            try:
                await self.announce()
            except (NetworkError, RecordError) as error:
                self._failures += 1
                wait = min(self._timing.first_retry * 2 ** (self._failures - 1), self._timing.period)
                _log.warning("the directory did not take our record; trying again in %.0f s: %s", wait, error)
            else:
                if self._failures:
                    _log.info("the directory takes our record again")
                self._failures = 0
                wait = self._timing.period
            await self._pause(wait)

    async def withdraw(self) -> None:
        """Say that this peer is gone. Call it when `run` has ended; a directory that fails is only logged."""
        if self._record.state is PeerState.OFFLINE and self._known.is_set():
            return
        self._record = replace(self._record, state=PeerState.OFFLINE)
        try:
            await self._announce(self._timing.farewell)
        except (NetworkError, RecordError) as error:
            _log.info("could not say goodbye; our record runs out in %.0f s: %s", self._timing.lifetime, error)

    async def _announce(self, patience: float) -> None:
        record = self._record
        self._changed.clear()
        await self._send(record, patience)
        if record is self._record:
            self._known.set()

    async def _send(self, record: PeerRecord, patience: float) -> None:
        self._issued = _later(self._clock(), self._issued)
        load = self._load()
        current = replace(
            record,
            cache_left=load.cache_left,
            queue=load.queue,
            issued=self._issued,
            expires=self._issued + self._timing.lifetime,
        )
        try:
            async with asyncio.timeout(patience):
                await self._directory.announce(current)
        except TimeoutError:
            raise NetworkError(f"no answer within {patience:.0f} s") from None

    async def _pause(self, seconds: float) -> None:
        await pass_time(seconds, woken=self._changed, clock=self._clock)


def _later(now: float, last: float) -> float:
    """When a record is issued: after the last one, even when the clock was set back a little; a record from further in
    the future would be refused, so a clock that was set back more is followed."""
    return now if now < last - CLOCK_TOLERANCE else max(now, last + 0.001)
