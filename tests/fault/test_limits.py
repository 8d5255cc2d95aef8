"""How long is waited: in proportion to what is predicted, learnt from what was measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fault.limits import Bounds, TimeLimits

BOUNDS = Bounds(floor=0.4, cold_floor=1.5, ceiling=300.0, unknown=4.0)


def after(*ratios: float, predicted: float = 0.1) -> TimeLimits[str]:
    limits: TimeLimits[str] = TimeLimits()
    for ratio in ratios:
        limits.measured("alice", ratio * predicted, predicted)
    return limits


def test_who_was_never_measured_gets_several_times_what_is_predicted_and_a_cold_floor() -> None:
    limits: TimeLimits[str] = TimeLimits()
    assert limits.limit(["alice"], 2.0, BOUNDS) == 8.0
    assert limits.limit(["alice"], 0.01, BOUNDS) == 1.5


def test_a_steady_peer_is_asked_after_twice_its_time() -> None:
    limits = after(*[1.0] * 50)
    assert limits.limit(["alice"], 3.0, BOUNDS) == pytest.approx(6.0, rel=0.01)
    assert limits.limit(["alice"], 0.01, BOUNDS) == 0.4


def test_more_work_is_given_more_time() -> None:
    limits = after(*[2.0] * 20)
    row, prompt = limits.limit(["alice"], 0.5, BOUNDS), limits.limit(["alice"], 50.0, BOUNDS)
    assert prompt == pytest.approx(100 * row)


def test_a_peer_that_becomes_ten_times_slower_is_given_that_time_after_one_step() -> None:
    limits = after(*[1.0] * 50)
    assert limits.limit(["alice"], 1.0, BOUNDS) < 10
    limits.measured("alice", 10.0, 1.0)
    assert limits.limit(["alice"], 1.0, BOUNDS) > 10


def test_a_chain_is_as_slow_as_its_slowest_peer() -> None:
    limits = after(*[1.0] * 20)
    for _ in range(20):
        limits.measured("bob", 5.0, 1.0)
    assert limits.limit(["alice", "bob"], 1.0, BOUNDS) == limits.limit(["bob"], 1.0, BOUNDS)


def test_a_false_alarm_doubles_the_time_until_it_is_taken_back() -> None:
    limits = after(*[1.0] * 200)
    usual = limits.limit(["alice"], 1.0, BOUNDS)
    limits.false_alarm("alice")
    assert limits.limit(["alice"], 1.0, BOUNDS) == pytest.approx(2 * usual)
    assert limits.limit(["alice"], 0.01, BOUNDS) == 0.8
    for _ in range(64):
        limits.measured("alice", 1.0, 1.0)
    assert limits.limit(["alice"], 1.0, BOUNDS) == pytest.approx(usual)


@given(
    ratios=st.lists(st.floats(0, 1e6), max_size=30),
    alarms=st.integers(0, 40),
    predicted=st.floats(0, 1e9),
)
def test_the_limit_is_never_below_what_is_predicted_nor_outside_its_bounds(
    ratios: list[float], alarms: int, predicted: float
) -> None:
    limits = after(*ratios)
    for _ in range(alarms):
        limits.false_alarm("alice")
    limit = limits.limit(["alice", "bob"], predicted, BOUNDS)
    assert min(predicted, BOUNDS.ceiling) <= limit
    assert BOUNDS.floor <= limit <= BOUNDS.ceiling
