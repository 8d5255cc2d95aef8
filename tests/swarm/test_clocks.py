"""What is said of a clock that is off."""

import pytest

from swarm.clocks import clock_trouble


@pytest.mark.parametrize("offsets", [[], [0.1], [-2.9], [2.0, 7200.0, -1.0]])
def test_nothing_is_said_of_a_clock_that_most_agree_with(offsets: list[float]) -> None:
    assert clock_trouble(offsets) is None


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([60.0], "60 s behind that of the one other peer"),
        ([600.0, 601.0, -5.0], "10 minutes behind that of 3 other peers"),
        ([-10800.0, -10800.0], "3.0 hours ahead of that of 2 other peers"),
    ],
)
def test_a_clock_that_is_off_is_named_with_what_to_do(offsets: list[float], words: str) -> None:
    said = clock_trouble(offsets)
    assert said is not None
    assert words in said
    assert "NTP" in said
