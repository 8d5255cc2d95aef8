import pytest

from peers.signs import BARS, duration, grouped, pasteable, sparkline


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_061, "1 d 1 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_digits_stand_in_groups() -> None:
    assert [grouped(n) for n in (7, 1000, 1_234_567)] == ["7", "1 000", "1 234 567"]


def test_sparkline_ends_with_the_latest_and_fits() -> None:
    assert sparkline((), 5) == ""
    assert sparkline((1, 2), 0) == ""
    assert sparkline((0, 0, 0), 5) == BARS[0] * 3
    assert sparkline((0, 1, 8), 5) == BARS[0] + BARS[2] + BARS[7]
    assert sparkline((9, 9, 9, 9, 0, 8), 2) == BARS[7] + BARS[4]
    assert len(sparkline(range(100), 30)) == 30


def test_sparkline_shows_the_least_that_is_not_nothing() -> None:
    assert sparkline((0, 0.001, 1000), 3)[1] == BARS[1]


def test_pasteable_lines_are_one_command_to_a_shell() -> None:
    command = "swarm-serve m --initial-peers " + "x" * 90
    for width in (5, 20, 40, 80):
        lines = list(pasteable(command, width))
        assert max(map(len, lines)) <= width
        assert "\n".join(lines).replace("\\\n", "") == command
    assert list(pasteable(command, 200)) == [command]
