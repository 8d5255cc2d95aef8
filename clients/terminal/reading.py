"""What a person types: lines with a history, several of them where they are marked as one."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Lines", "history"]

PROMPT, MORE = ">>> ", "... "
FENCE = '"""'
KEPT = 1000  # lines of history


class Lines:
    """Reads from the terminal, or from a pipe without prompts."""

    def __init__(self, *, prompts: bool) -> None:
        self._prompts = prompts

    def next(self) -> str | None:
        """The next message, or None at the end of input. A line that ends in a backslash goes on in the next one, and
        what is between \"\"\" and \"\"\" may have any number of lines. Raises KeyboardInterrupt for Ctrl-C."""
        first = self._line(PROMPT)
        if first is None:
            return None
        stripped = first.strip()
        if stripped.startswith(FENCE):
            return self._fenced(stripped.removeprefix(FENCE))
        lines = [first]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            if (more := self._line(MORE)) is None:
                break
            lines.append(more)
        return "\n".join(lines).strip()

    def _fenced(self, first: str) -> str:
        lines = []
        line: str | None = first
        while line is not None and not line.rstrip().endswith(FENCE):
            lines.append(line)
            line = self._line(MORE)
        if line is not None:
            lines.append(line.rstrip().removesuffix(FENCE))
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        if self._prompts:
            try:
                return input(prompt)
            except EOFError:
                return None
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None


@contextmanager
def history(path: Path, words: Iterable[str]) -> Iterator[None]:
    """Arrow keys bring back what was typed, also in earlier chats, and Tab completes `words`. Where there is no
    readline, as on some systems, lines can only be typed."""
    try:
        import readline
    except ImportError:
        yield
        return
    known = sorted(words)

    def complete(text: str, state: int) -> str | None:
        fitting = [word for word in known if word.startswith(text)] if text.startswith("/") else []
        return fitting[state] if state < len(fitting) else None

    before = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    readline.parse_and_bind("set enable-bracketed-paste on")  # several pasted lines are one message
    readline.clear_history()
    readline.set_history_length(KEPT)
    with suppress(OSError):  # none was kept yet
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])
        with suppress(OSError):  # a history that can't be kept is no reason to fail
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # others need not read what was asked
            readline.write_history_file(path)
