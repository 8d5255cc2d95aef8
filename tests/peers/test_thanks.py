import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from peers.gauge import Counts
from peers.thanks import SAVE_SECONDS, Thanks, ThanksBook, read_thanks, thanks_path


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(path: Path, clock: Clock | None = None, day: int = 21) -> ThanksBook:
    return ThanksBook.open(path, clock or Clock(), lambda: datetime(2026, 11, day, tzinfo=UTC))


def test_total_grows_over_runs(tmp_path: Path) -> None:
    path = thanks_path(tmp_path / "identity")
    assert path.parent == tmp_path
    first = opened(path)
    first.note(Counts(tokens=100, sessions=2), 10.0)
    first.note(Counts(tokens=150, sessions=3), 20.0)
    first.save()
    second = opened(path, day=25)
    second.note(Counts(tokens=5, sessions=1), 1.5)
    second.save()
    assert read_thanks(path) == Thanks(tokens=155, sessions=4, seconds=21.5, runs=2, since="2026-11-21")


def test_disk_is_written_rarely(tmp_path: Path) -> None:
    path, clock = tmp_path / "thanks.json", Clock()
    book = opened(path, clock)
    written = []
    for _ in range(3 * int(SAVE_SECONDS)):
        clock.now += 1
        book.note(Counts(tokens=int(clock.now)), clock.now)
        if path.exists() and (not written or read_thanks(path).tokens != written[-1]):
            written.append(read_thanks(path).tokens)
    assert written == [SAVE_SECONDS, 2 * SAVE_SECONDS, 3 * SAVE_SECONDS]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"tokens": -1}',
        '{"tokens": "many"}',
        '{"tokens": true, "sessions": 0, "seconds": 0, "runs": 0, "since": "2026-11-21"}',
        '{"tokens": NaN, "sessions": 0, "seconds": 0, "runs": 0, "since": "2026-11-21"}',
        '{"tokens": 1, "sessions": 0, "seconds": 0, "runs": 0, "since": "last week"}',
        "x" * 100_000,
    ],
)
def test_damaged_file_is_put_aside_and_told(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "thanks.json"
    path.write_text(text)
    book = opened(path)
    assert book.total == Thanks(runs=1, since="2026-11-21")
    assert (tmp_path / "thanks.json.damaged").read_text() == text
    assert "begins anew" in caplog.text


def test_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    caplog.set_level(logging.WARNING)
    book = opened(tmp_path / "file" / "thanks.json")
    caplog.clear()
    book.save()
    book.save()
    assert len(caplog.records) == 1


def test_file_is_json_that_other_programs_can_read(tmp_path: Path) -> None:
    book = opened(tmp_path / "thanks.json")
    book.save()
    assert json.loads((tmp_path / "thanks.json").read_text()).keys() == {
        "tokens",
        "sessions",
        "seconds",
        "runs",
        "since",
    }
