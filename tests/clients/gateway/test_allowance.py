"""Limits of one key, by a clock that the test moves."""

import pytest

from clients.gateway.allowance import Bucket, Limits, User
from clients.gateway.errors import ApiError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_bucket_refills_with_time_and_never_beyond_its_size() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert bucket.wait(1) == pytest.approx(1)
    clock.now += 1
    assert bucket.wait(1) == 0
    clock.now += 3600
    bucket.take(60)
    assert bucket.wait(1) == pytest.approx(1)


def test_requests_of_a_minute_are_counted() -> None:
    clock = Clock()
    user = User("alice", Limits(requests=2), clock)
    for _ in range(2):
        user.enter()
        user.leave()
    with pytest.raises(ApiError, match="2 requests a minute") as refused:
        user.enter()
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "30")
    clock.now += 30
    user.enter()


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    user = User("alice", Limits(requests=60, concurrent=1), clock)
    user.enter()
    for _ in range(100):
        with pytest.raises(ApiError, match="1 requests at once"):
            user.enter()
    user.leave()
    user.enter()


def test_tokens_already_spent_make_the_next_request_wait() -> None:
    clock = Clock()
    user = User("alice", Limits(tokens=600), clock)
    user.enter()
    user.spend(900)  # an answer in progress goes on
    with pytest.raises(ApiError, match="600 tokens a minute") as refused:
        user.enter()
    assert refused.value.headers["Retry-After"] == "31"
    clock.now += 31
    user.enter()


def test_without_limits_nothing_is_refused() -> None:
    user = User("anyone", Limits(), Clock())
    for _ in range(10_000):
        user.enter()
        user.spend(1_000_000)
