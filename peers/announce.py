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
from swarm.errors import NetworkError
from swarm.record import PeerRecord, PeerState

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
    """What changes all the time: tokens of KV that can still be reserved, tokens waiting."""

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
        self._failures = 0

    @property
    def record(self) -> PeerRecord:
        return self._record

    def change(self, **fields: Any) -> None:
        """Other fields of the record, announced soon by `run`."""
        self._record = replace(self._record, **fields)
        self._changed.set()

    async def announce(self) -> None:
        """The record as it is now. Raises NetworkError when nobody took it in time."""
        self._changed.clear()
        await self._send(self._record, self._timing.patience)

    async def run(self) -> None:
        """Announce now, on every change and every period, until cancelled."""
        while True:
            try:
                await self.announce()
            except NetworkError as error:
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
        self._record = replace(self._record, state=PeerState.OFFLINE)
        try:
            await self._send(self._record, self._timing.farewell)
        except NetworkError as error:
            _log.info("could not say goodbye; our record runs out in %.0f s: %s", self._timing.lifetime, error)

    async def _send(self, record: PeerRecord, patience: float) -> None:
        now = self._clock()
        # a clock that was set back must not make our newest record look older than the last
        self._issued = max(now, self._issued + 0.001)
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
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
