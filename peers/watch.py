"""Looks at a peer about every second while it serves: counts what it gives, and shows it to whoever wants to see."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from peers.gauge import Gauge
from peers.lifecycle import Served
from peers.machine import free_memory
from peers.moment import Moment
from peers.ready import Ready, StandingBy
from peers.thanks import ThanksBook
from peers.vitals import Vitals, read_vitals

__all__ = ["View", "Watch"]

LOOK_SECONDS = 1.0
VITALS_SECONDS = 5.0  # some sensors take a tenth of a second to read


class View(Protocol):
    """Where it is shown. Called in the loop's thread; must not wait."""

    def begin(self, ready: Ready) -> None:
        """The peer serves now, for the first time or other blocks than before."""

    def stand_by(self, standing: StandingBy) -> None:
        """The peer serves nothing now, and has these blocks ready."""

    def show(self, moment: Moment) -> None: ...

    def end(self) -> None:
        """It serves no more. Called once, also where it never began."""


class Watch:
    """`begin` when the peer serves, and again when it serves other blocks; `run` all along; `close` at the end."""

    def __init__(self, view: View, book: ThanksBook, clock: Callable[[], float] = time.monotonic) -> None:
        self._view = view
        self._book = book
        self._clock = clock
        self._gauge = Gauge()
        self._serving = asyncio.Event()
        self._ready: Ready | None = None
        self._served: Served | None = None
        self._began = 0.0
        self._vitals: Vitals | None = None

    def begin(self, ready: Ready, served: Served) -> None:
        if self._ready is None:
            self._began = self._clock()
        self._ready, self._served = ready, served
        self._view.begin(ready)
        self._serving.set()

    def stand_by(self, standing: StandingBy) -> None:
        self._view.stand_by(standing)

    async def run(self) -> None:
        """Until cancelled."""
        await self._serving.wait()
        while True:
            if self._vitals is None or self._uptime % VITALS_SECONDS < LOOK_SECONDS:
                self._vitals = await asyncio.to_thread(_read_vitals)
            self._look()
            await asyncio.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """The last look, and the count is saved."""
        try:
            if self._served is not None:
                self._look()
                self._book.save()
        finally:
            self._view.end()

    @property
    def _uptime(self) -> float:
        return self._clock() - self._began

    def _look(self) -> None:
        if self._ready is None or self._served is None:
            return
        stats, gauge = self._served.executor.link.stats, self._gauge
        gauge.note(stats, self._clock())
        self._book.note(gauge.counts, self._uptime)
        record = self._served.record()
        moment = Moment(
            ready=self._ready,
            state=record.state,
            addresses=record.contact.addresses,
            uptime=self._uptime,
            engine=stats.engine,
            executor_bytes=stats.rss,
            device=stats.device,
            vitals=self._vitals or _read_vitals(),
            tokens=gauge.counts.tokens,
            sessions_taken=gauge.counts.sessions,
            thanks=self._book.total,
            rate=gauge.rate,
            rates=gauge.history,
            batch=gauge.batch,
            busy=gauge.busy,
        )
        self._view.show(moment)


def _read_vitals() -> Vitals:
    return read_vitals(free_memory())
