"""When packets come out of a line."""

import random

import pytest

from tests.wan.link import Line, Link


def line(link: Link) -> Line:
    return Line(link, random.Random(7))


def test_delay_is_for_all_and_a_wait_for_bandwidth_adds_up() -> None:
    slow = line(Link(delay=1.0, bandwidth=100.0, queue=10.0))
    assert [slow.take(0.0, 50) for _ in range(3)] == [1.5, 2.0, 2.5]
    assert slow.take(5.0, 50) == 6.5


def test_who_would_wait_longer_than_the_queue_is_dropped() -> None:
    short = line(Link(bandwidth=100.0, queue=1.0))
    assert [short.take(0.0, 60) for _ in range(4)] == [0.6, 1.2, None, None]
    assert short.take(1.2, 60) == pytest.approx(1.8)


def test_jitter_delays_and_keeps_order() -> None:
    shaky = line(Link(delay=1.0, jitter=0.5))
    out = [shaky.take(at / 100, 10) for at in range(200)]
    times = [time for time in out if time is not None]
    assert times == sorted(times)
    assert len(times) == 200
    assert all(1.0 <= time - at / 100 <= 1.5 for at, time in enumerate(times))
    assert len({round(time - at / 100, 6) for at, time in enumerate(times)}) > 10


def test_loss_is_a_share_and_its_seed_makes_it_again() -> None:
    one, other = line(Link(loss=0.3)), line(Link(loss=0.3))
    lost = [one.take(0.0, 1) is None for _ in range(10_000)]
    assert 2500 < sum(lost) < 3500
    assert lost == [other.take(0.0, 1) is None for _ in range(10_000)]


@pytest.mark.parametrize("wrong", [{"delay": -1.0}, {"bandwidth": 0.0}, {"loss": 1.5}, {"queue": -0.1}])
def test_link_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no link is like"):
        Link(**wrong)
