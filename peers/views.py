"""Where a serving peer is shown: on a terminal as a dashboard, elsewhere as plain lines, to programs as JSON lines."""

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.live import Live

from peers.dashboard import Dashboard
from peers.moment import Moment
from peers.ready import Ready, StandingBy
from peers.watch import View
from swarm.running import announce_running
from swarm.terminal import LogFormat, emit

__all__ = ["DashboardView", "JsonView", "Noted", "PlainView", "can_draw", "choose_view"]

STATS_SECONDS = 30.0  # between two `stats` lines

_log = logging.getLogger(__name__)


def can_draw(environ: Mapping[str, str], *streams: TextIO) -> bool:
    """Whether these are terminals that can move their cursor."""
    return environ.get("TERM") not in ("dumb", "unknown") and all(stream.isatty() for stream in streams)


def choose_view(log_format: LogFormat, dashboard: bool, console: Console) -> View:
    """`console`: where the log goes, too, so that its lines go above the dashboard."""
    if log_format is LogFormat.JSON:
        return JsonView()
    if dashboard and can_draw(os.environ, sys.stdout, sys.stderr):
        return DashboardView(console)
    return PlainView()


class Noted:
    """Another view, and a note for other programs on this machine as long as the peer serves: see `swarm.running`."""

    def __init__(self, view: View, state: Path) -> None:
        self._view = view
        self._state = state
        self._note = ExitStack()

    def begin(self, ready: Ready) -> None:
        self._note.close()
        self._note.enter_context(announce_running(ready.running(ready.name), self._state))
        self._view.begin(ready)

    def stand_by(self, standing: StandingBy) -> None:
        self._note.close()
        self._note.enter_context(announce_running(standing.running(), self._state))
        self._view.stand_by(standing)

    def show(self, moment: Moment) -> None:
        self._view.show(moment)

    def end(self) -> None:
        self._note.close()
        self._view.end()


class PlainView:
    """A block of text when the peer serves; the log says the rest."""

    def begin(self, ready: Ready) -> None:
        print(ready.text(), flush=True)

    def stand_by(self, standing: StandingBy) -> None:
        print(standing.text(), flush=True)

    def show(self, moment: Moment) -> None:
        pass

    def end(self) -> None:
        pass


class JsonView:
    """A line `ready` (another when it serves other blocks), a line `stats` now and then, and one at the end."""

    def __init__(self, every: float = STATS_SECONDS) -> None:
        self._every = every
        self._said_at = 0.0  # of the peer's uptime
        self._moment: Moment | None = None

    def begin(self, ready: Ready) -> None:
        emit("ready", **ready.event())

    def stand_by(self, standing: StandingBy) -> None:
        emit("standby", **standing.event())

    def show(self, moment: Moment) -> None:
        self._moment = moment
        if moment.uptime >= self._said_at + self._every:
            self._said_at = moment.uptime
            emit("stats", **moment.event())

    def end(self) -> None:
        if self._moment is not None:
            emit("stats", **self._moment.event())


class DashboardView:
    """Drawn anew with each moment, and left on the screen at the end."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._gone = False  # the terminal

    def begin(self, ready: Ready) -> None:
        self._live.start()

    def stand_by(self, standing: StandingBy) -> None:
        _log.info("%s", standing.text().strip())

    def show(self, moment: Moment) -> None:
        if self._gone:
            return
        try:
            self._live.update(Dashboard(moment), refresh=True)
        except OSError as error:  # the peer goes on
            self._gone = True
            _log.info("the dashboard ends: %s", error)

    def end(self) -> None:
        with suppress(OSError):
            self._live.stop()
