"""What a chat shows: the answer as it comes, the chain that computes it, and what happens to the chain.

On a terminal the answer is markdown with a status line below it; elsewhere it is plain text on stdout.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text as RichText

from clients.story import plain_lines
from clients.terminal.backend import ChainNow, Ended, Happening, Lost, Pace, Pausing, Text
from clients.terminal.markdown import Block, Growing, Tail
from swarm.terminal import plain

__all__ = ["Answer", "LiveScreen", "PlainScreen", "Screen", "Stats", "show"]

FRAME_SECONDS = 0.08  # between two drawings while text comes
REFRESHES = 4  # a second, of drawings besides
FENCES = ("```", "~~~")
KEPT_LINES = 3  # of the screen that an unfinished block leaves free


class Stats:
    """How an answer came. Seconds of the monotonic clock."""

    def __init__(self, chain: ChainNow | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`chain`: along which the answer begins, where that is known already."""
        self._clock = clock
        self._begun = clock()
        self._first = self._last = self._begun
        self.pieces = 0
        self.chain = chain
        self.pace: Pace | None = None
        self.ended: Ended | None = None
        self.recoveries = 0

    def hear(self, happening: Happening) -> None:
        match happening:
            case Text():
                self._last = self._clock()
                self._first = self._first if self.pieces else self._last
                self.pieces += 1
            case ChainNow(mended=mended):
                self.chain = happening
                self.recoveries += mended
            case Pace():
                self.pace = happening
            case Ended():
                self.ended = happening

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first; pieces of text where nobody counts tokens."""
        tokens = self.ended.tokens if self.ended and self.ended.tokens else self.pieces
        seconds = self._last - self._first
        return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else None

    def summary(self) -> str:
        """One line about the whole answer."""
        ended = self.ended
        parts = [] if ended is None or ended.tokens is None else [f"{ended.tokens} tokens"]
        if self.rate is not None:
            parts.append(f"{self.rate:.1f} tokens/s")
        if self.pieces:
            parts.append(f"first after {self._first - self._begun:.2f} s")
        if ended is not None and ended.prompt is not None:
            known = "" if ended.cached is None else f", {ended.cached} of them known to the peers"
            parts.append(f"prompt {ended.prompt} tokens{known}")
        if ended is not None and ended.reason == "length":
            parts.append("cut at the most tokens")
        return " · ".join(parts)

    def chain_line(self) -> str:
        """The chain with the time in each hop, and how fast the answer comes."""
        if self.chain is None:
            return "" if self.rate is None else f"{self.rate:.1f} tokens/s"
        times = self.pace.hops if self.pace is not None else ()
        hops = []
        for number, hop in enumerate(self.chain.hops):
            spent = f" {times[number] * 1000:.0f} ms" if number < len(times) else ""
            hops.append(f"{plain(hop.name, 24)} {hop.blocks}{spent}")
        whole = f" · {self.pace.seconds * 1000:.0f} ms a step" if self.pace and self.pace.seconds else ""
        rate = "" if self.rate is None else f" · {self.rate:.1f} tokens/s"
        return " → ".join(hops) + whole + rate


class Answer(Protocol):
    """The showing of one answer; a context manager, which leaves the screen in order however it ends."""

    def add(self, text: str) -> None: ...
    def say(self, line: str, *, style: str = "") -> None: ...
    def status(self, line: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Screen(Protocol):
    def answer(self) -> Answer: ...
    def say(self, line: str, *, style: str = "") -> None:
        """A line about the chat, none of the model's."""
        ...


def show(happenings: Generator[Happening, None, None], screen: Screen, stats: Stats) -> Generator[str, None, None]:
    """Shows what happens, and hands on the pieces of the answer. Closing it stops the answer."""
    with screen.answer() as answer:
        try:
            for happening in happenings:
                stats.hear(happening)
                if isinstance(happening, Text):
                    answer.add(happening.text)
                    answer.status(stats.chain_line())
                    yield happening.text
                else:
                    _tell(happening, answer, stats)
        finally:
            happenings.close()


def _tell(happening: Happening, answer: Answer, stats: Stats) -> None:
    match happening:
        case ChainNow(hops, seconds, mended=True):
            names = " → ".join(f"{plain(hop.name, 24)} {hop.blocks}" for hop in hops)
            answer.say(f"goes on along {names}, after {seconds * 1000:.0f} ms", style="cyan")
        case Lost(name, reason):
            answer.say(f"{plain(name, 24)} is gone ({plain(reason, 200)}); another peer takes over", style="yellow")
        case Pausing(reason, _):
            answer.say(f"waiting: {plain(reason, 300)}", style="yellow")
        case ChainNow() | Pace():
            answer.status(stats.chain_line())


# --- a terminal --------------------------------------------------------------------------------------------------


class LiveScreen:
    def __init__(self, console: Console) -> None:
        self._console = console

    def answer(self) -> "_LiveAnswer":
        return _LiveAnswer(self._console)

    def say(self, line: str, *, style: str = "") -> None:
        self._console.print(line, style=style or "dim", markup=False, highlight=False)


class _LiveAnswer:
    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._text = Growing()
        self._status = ""
        self._drawn = 0.0
        self._blocks = 0  # that are printed
        self._padded = False  # whether the last of them was
        self._live = Live(console=console, refresh_per_second=REFRESHES, transient=True, vertical_overflow="crop")

    def add(self, text: str) -> None:
        self._text.add(plain_lines(text))
        self._draw()

    def status(self, line: str) -> None:
        self._status = line
        self._draw()

    def say(self, line: str, *, style: str = "") -> None:
        self._live.console.print(RichText(f"│ {line}", style=style or "dim"))
        self._draw(now=True)

    def __enter__(self) -> Self:
        self._live.start()
        self._status = "thinking …"
        self._draw(now=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        rest = (*self._text.settled(), self._text.rest)
        self._text = Growing()
        self._live.update(RichText(""))
        self._live.stop()
        self._settle(rest)
        if self._blocks and self._status:
            self._console.print(RichText(self._status, style="dim", no_wrap=True, overflow="ellipsis"))

    def _draw(self, *, now: bool = False) -> None:
        if not now and self._clock() < self._drawn + FRAME_SECONDS:
            self._live.update(self._last_block())  # to be drawn soon, even if nothing more comes
            return
        whole = self._text.settled()
        self._live.update(self._last_block())  # before anything is printed, or both would be there at once
        self._settle(whole)
        self._live.refresh()
        self._drawn = self._clock()

    def _last_block(self) -> Tail:
        status = RichText(self._status, style="dim", no_wrap=True, overflow="ellipsis")
        return Tail(Block(self._text.rest), max(2, self._console.height - KEPT_LINES), [status])

    def _settle(self, blocks: Iterable[str]) -> None:
        """Print blocks for good, above what is still drawn."""
        for block in blocks:
            if not block.strip():
                continue
            padded = block.lstrip().startswith(FENCES)  # code is drawn with empty lines around it
            gap = [""] if self._blocks and not (padded or self._padded) else []
            self._console.print(*gap, Block(block), sep="\n")
            self._blocks, self._padded = self._blocks + 1, padded


# --- a pipe or a file --------------------------------------------------------------------------------------------


class PlainScreen:
    """The answer goes to stdout as it is, notes to `notes`, which may be quiet."""

    def __init__(self, notes: Console) -> None:
        self._notes = notes

    def answer(self) -> "_PlainAnswer":
        return _PlainAnswer(self._notes)

    def say(self, line: str, *, style: str = "") -> None:
        self._notes.print(line, style=style, markup=False, highlight=False)


class _PlainAnswer:
    def __init__(self, notes: Console) -> None:
        self._notes = notes
        self._in_line = False

    def add(self, text: str) -> None:
        shown = plain_lines(text)
        sys.stdout.write(shown)
        sys.stdout.flush()
        self._in_line = not shown.endswith("\n") if shown else self._in_line

    def status(self, line: str) -> None:
        pass

    def say(self, line: str, *, style: str = "") -> None:
        self._notes.print(f"│ {line}", style=style, markup=False, highlight=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._in_line:
            sys.stdout.write("\n")
            sys.stdout.flush()
