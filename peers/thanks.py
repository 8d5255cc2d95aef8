"""What a volunteer has given in all, kept beside the identity that gave it.

A peer earns nothing but thanks: here they are counted. The file is written whole or not at all, every few minutes and
at the end, by the process that holds the identity's lock, so nobody else writes it meanwhile.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers.gauge import Counts
from swarm.atomic import write_file

__all__ = ["Thanks", "ThanksBook", "read_thanks", "thanks_path"]

SAVE_SECONDS = 300.0
MOST = 1e18  # of anything that is counted
LONGEST = 4096  # bytes of a file that we have written

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Thanks:
    """`tokens` that went through this peer's blocks for others, `sessions` that it took, `seconds` that it served, in
    so many `runs`, `since` a day (UTC, as 2026-11-21)."""

    tokens: int = 0
    sessions: int = 0
    seconds: float = 0.0
    runs: int = 0
    since: str = ""


def thanks_path(identity: Path) -> Path:
    return identity.with_name(f"{identity.name}.thanks.json")


def read_thanks(path: Path) -> Thanks:
    """None given yet where there is no file. Raises OSError or ValueError."""
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(LONGEST))
    except FileNotFoundError:
        return Thanks()
    return _checked(values)


def _checked(values: Any) -> Thanks:
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    tokens, sessions, seconds, runs = (_count(values, name) for name in ("tokens", "sessions", "seconds", "runs"))
    day = datetime.fromisoformat(str(values.get("since"))).date()
    return Thanks(int(tokens), int(sessions), float(seconds), int(runs), day.isoformat())


def _count(values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MOST:
        raise ValueError(f"{name} is no count")
    return value


class ThanksBook:
    """Made by `open`. A disk that is full or may not be written is told once; a peer serves without it."""

    def __init__(self, path: Path, before: Thanks, clock: Callable[[], float]) -> None:
        self.total = before
        self._path = path
        self._before = before
        self._clock = clock
        self._saved = clock()
        self._complained = False

    @classmethod
    def open(
        cls, path: Path, clock: Callable[[], float], today: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> "ThanksBook":
        """Another run begins. A file that can't be read is put aside, and the count begins anew."""
        try:
            before = read_thanks(path)
        except (OSError, ValueError) as error:
            _log.warning("the count of what this peer has given begins anew, %s can't be read: %s", path, error)
            _put_aside(path)
            before = Thanks()
        since = before.since or today().date().isoformat()
        return cls(path, replace(before, runs=before.runs + 1, since=since), clock)

    def note(self, counts: Counts, seconds: float) -> None:
        """What this run has given so far; saved when it is time to."""
        before = self._before
        self.total = replace(
            before,
            tokens=before.tokens + counts.tokens,
            sessions=before.sessions + counts.sessions,
            seconds=round(before.seconds + seconds, 1),
        )
        if self._clock() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self._saved = self._clock()
        try:
            write_file(self._path, (json.dumps(asdict(self.total)) + "\n").encode())
        except OSError as error:
            if not self._complained:
                _log.warning("what this peer has given can't be written to %s: %s", self._path, error)
            self._complained = True


def _put_aside(path: Path) -> None:
    try:
        os.replace(path, path.with_name(f"{path.name}.damaged"))
    except OSError as error:
        _log.info("%s stays where it is: %s", path, error)
