"""Markdown as it comes: whole blocks are shown once and for all, only the last one is drawn again and again.

So a long answer neither flickers nor outgrows the screen, and what has scrolled away stays as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Markdown
from rich.segment import Segment

__all__ = ["Block", "Growing", "Tail"]

# HTML stays text: the library would leave it out, and with it what the model wrote.
PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")


class Growing:
    """A text that grows. `rest`: what belongs to its last block."""

    def __init__(self) -> None:
        self.rest = ""

    def add(self, text: str) -> None:
        self.rest += text

    def settled(self) -> tuple[str, ...]:
        """The blocks that nothing more can change; they leave `rest`."""
        tops = [token.map[0] for token in PARSER.parse(self.rest) if token.level == 0 and token.map is not None]
        starts = sorted(set(tops))
        if len(starts) < 2:
            return ()
        lines = self.rest.splitlines(keepends=True)
        cuts = [0, *starts[1:]]
        self.rest = "".join(lines[cuts[-1] :])
        return tuple("".join(lines[a:b]) for a, b in pairwise(cuts))


@dataclass(frozen=True, slots=True)
class Block:
    """Markdown to draw. Addresses of links are shown, not hidden behind their words."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        markdown = Markdown("", hyperlinks=False)
        markdown.parsed = PARSER.parse(self.text)
        yield markdown


class Tail:
    """The last `lines` lines of something, and then the lines below it."""

    def __init__(self, above: RenderableType, lines: int, below: Sequence[RenderableType] = ()) -> None:
        self._above = above
        self._lines = lines
        self._below = below

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._above, options, pad=False)
        for line in lines[-self._lines :]:
            yield from line
            yield Segment.line()
        yield from self._below
