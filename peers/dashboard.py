"""A serving peer as its volunteer sees it on a terminal: one moment, drawn to the size that there is.

Nothing is drawn right of a text, and the line to paste is broken as a shell allows, so it can be copied as it stands.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from peers.memory_budget import readable
from peers.moment import Moment
from peers.signs import BARS, PLAIN_BARS, duration, grouped, pasteable, sparkline
from swarm.record import PeerState
from swarm.terminal import plain

__all__ = ["Dashboard"]

LABEL = 12  # columns
NARROW = 50  # columns; below, words that only explain are left out
MOST_ADDRESSES = 3
MOST_REASON_LINES = 2
SPARKS = 30  # columns
METER = 20  # columns
COLOURS = {
    PeerState.ONLINE: "green",
    PeerState.JOINING: "yellow",
    PeerState.DRAINING: "magenta",
    PeerState.PAUSED: "blue",
    PeerState.STANDBY: "cyan",
    PeerState.OFFLINE: "red",
}

Line: TypeAlias = tuple[int, Text]  # how much it matters, 0 most


@dataclass(frozen=True, slots=True)
class Dashboard:
    moment: Moment

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawing = _Drawing(self.moment, options.max_width, options.ascii_only)
        lines = _fit(list(drawing.lines()), options.size.height - 1)  # the cursor's line is not ours
        yield from map(_in_ascii, lines) if options.ascii_only else lines


def _fit(lines: Sequence[Line], height: int) -> Iterator[Text]:
    """As many of the lines as there is room for, in order, those that matter most; a group is there whole or not."""
    ranks = sorted({rank for rank, _ in lines})
    fitting = [rank for rank in ranks if sum(other <= rank for other, _ in lines) <= height]
    most = fitting[-1] if fitting else ranks[0]
    yield from [text for rank, text in lines if rank <= most][: max(1, height)]


def _in_ascii(line: Text) -> Text:
    """Whatever is left that such a terminal has no sign for."""
    plainer = line.plain.replace("°", "").encode("ascii", "replace").decode()
    return Text(plainer, no_wrap=True, overflow="crop")


@dataclass(frozen=True, slots=True)
class _Drawing:
    moment: Moment
    width: int
    ascii: bool

    def lines(self) -> Iterator[Line]:
        """Top to bottom."""
        ready = self.moment.ready
        yield 0, self._title()
        yield from self._row(3, "peer", ready.peer_id)
        share = "all" if len(ready.blocks) == ready.num_blocks else f"{len(ready.blocks)} of {ready.num_blocks}"
        yield from self._row(1, "blocks", f"{ready.blocks} ({share}) of {ready.model}")
        yield from self._wrapped(4, ready.reason)
        yield from self._row(3, "compute", f"{ready.precision} on {ready.device}")
        yield from self._wrapped(5, ready.precision_reason)
        yield from self._addresses()
        yield 6, Text()
        yield from self._row(0, "speed", self._speed())
        yield from self._row(1, "sessions", self._sessions())
        yield from self._row(2, "batches", self._batches())
        yield from self._row(2, "KV cache", self._kv())
        yield from self._row(2, "memory", self._memory())
        yield from self._row(0, "thanks", self._thanks())
        yield 5, Text()
        yield 5, Text("Join with another machine:", style="dim", no_wrap=True, overflow="ellipsis")
        for part in pasteable(ready.join, self.width):
            yield 5, Text(part, no_wrap=True)

    # --- rows ---

    def _title(self) -> Text:
        moment = self.moment
        name = plain(moment.ready.name, 40)
        text = Text("swarm", style="bold", no_wrap=True, overflow="ellipsis")
        text.append(f" {self._dot} {name}" if name else "", style="not bold")
        text.append(f" {self._dot} ", style="not bold").append(moment.state.value, style=COLOURS[moment.state])
        text.append(f" {self._dot} {duration(moment.uptime)}", style="not bold")
        room = self.width - text.cell_len - 1
        return text.append(" " + ("-" if self.ascii else "─") * room, style="not bold dim") if room > 0 else text

    def _row(self, rank: int, label: str, text: str | Text) -> Iterator[Line]:
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f" {label:<{LABEL - 1}}", style="dim").append(text)
        yield rank, line

    def _wrapped(self, rank: int, text: str) -> Iterator[Line]:
        """What explains the row above."""
        if self.width < NARROW:
            return
        lines = textwrap.wrap(plain(text), self.width - LABEL, max_lines=MOST_REASON_LINES, placeholder=" …")
        for line in lines:
            yield from self._row(rank, "", Text(line, style="dim"))

    def _addresses(self) -> Iterator[Line]:
        found = [address.partition("/p2p/")[0] for address in self.moment.addresses]
        shown, more = found[:MOST_ADDRESSES], len(found) - MOST_ADDRESSES
        for index, address in enumerate(shown):
            rest = f" and {more} more" if more > 0 and index == len(shown) - 1 else ""
            yield from self._row(4, "" if index else "reached at", f"{address}{rest}")

    def _speed(self) -> Text:
        moment = self.moment
        text = Text(f"{moment.rate:.1f} tokens/s", style="bold")
        if self.width >= NARROW:
            room = min(SPARKS, self.width - LABEL - text.cell_len - 3)
            text.append("  ").append(sparkline(moment.rates, room, self._bars), style="not bold cyan")
        return text

    def _sessions(self) -> str:
        engine = self.moment.engine
        rows = f" of {_count(engine.rows, 'row')}" if engine.rows != engine.sessions else ""
        waiting = f", {_count(engine.queue_tokens, 'token')} waiting" if engine.queue_tokens else ""
        training = f", {engine.training_sessions} fine-tuning" if engine.training_sessions else ""
        taken = grouped(self.moment.sessions_taken)
        return f"{grouped(engine.sessions)} now{rows}{training}{waiting}, {taken} in this run"

    def _batches(self) -> str:
        moment = self.moment
        if moment.batch is None:
            return "nothing to compute"
        return f"of {moment.batch:.1f} rows, computing {moment.busy:.0%} of the time"

    def _kv(self) -> str:
        engine, used = self.moment.engine, self.moment.kv_used
        if not engine.kv_tokens:
            return "not heard of yet"  # an executor that has just been started
        pages, all_pages = -(-used // engine.page_tokens), engine.kv_tokens // engine.page_tokens
        share = used / engine.kv_tokens
        figures = f"{share:.0%}, {grouped(pages)} of {grouped(all_pages)} pages"
        return figures if self.width < NARROW else f"{self._meter(share)} {figures}"

    def _memory(self) -> str:
        moment, device = self.moment, self.moment.device
        temperature = moment.vitals.temperature
        parts = [f"{readable(moment.executor_bytes + moment.vitals.own)} used", f"{readable(moment.vitals.free)} free"]
        if temperature is not None:
            parts.append(f"{temperature:.0f} °C")
        if device is not None:
            parts.append(f"GPU {readable(device.free)} of {readable(device.total)} free")
            parts += [] if device.temperature is None else [f"{device.temperature:.0f} °C"]
        return ", ".join(parts)

    def _thanks(self) -> Text:
        moment, thanks = self.moment, self.moment.thanks
        if self.width < NARROW:
            return Text(f"{_count(moment.tokens, 'token')}, {grouped(thanks.tokens)} in all")
        text = Text(f"{_count(moment.tokens, 'token')} served in this run")
        if thanks.runs > 1:
            text.append(f", {grouped(thanks.tokens)} in all since {thanks.since}")
        return text

    # --- signs ---

    @property
    def _dot(self) -> str:
        return "-" if self.ascii else "·"

    @property
    def _bars(self) -> str:
        return PLAIN_BARS if self.ascii else BARS

    def _meter(self, share: float) -> str:
        full = round(METER * min(1.0, share)) or int(share > 0)
        return ("#" if self.ascii else "█") * full + ("." if self.ascii else "░") * (METER - full)


def _count(number: int, noun: str) -> str:
    return f"{grouped(number)} {noun}" if number == 1 else f"{grouped(number)} {noun}s"
