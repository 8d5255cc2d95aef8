"""Texts that end an answer where they first appear, in an answer that comes in pieces."""

from collections.abc import Sequence

__all__ = ["Stops"]


class Stops:
    """The stop strings of one choice. The one that is complete first ends it, and of several the longest; nothing of it
    is shown. So the cut does not depend on how the text was divided."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found: str | None = None  # the string that ended the choice

    def push(self, text: str) -> str:
        """What can be shown now that `text` has come: all but an end that may become a stop string."""
        if not self._strings:
            return text
        self._held += text
        ends = [(at + len(stop), at, stop) for stop in self._strings if (at := self._held.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            return self._show(at, rest="")
        return self._show(len(self._held) - self._open())

    def end(self) -> str:
        """What was held back, when no more text comes."""
        return self._show(len(self._held))

    def _show(self, count: int, rest: str | None = None) -> str:
        shown, self._held = self._held[:count], self._held[count:] if rest is None else rest
        return shown

    def _open(self) -> int:
        """Characters at the end that could begin a stop string."""
        longest = 0
        for stop in self._strings:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
