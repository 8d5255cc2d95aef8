import pytest

from peers.depth import MEMORY, Depth


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_depth_is_how_many_come_in_a_second_times_how_long_they_stay() -> None:
    clock = Clock()
    depth = Depth(clock)
    for _ in range(400):
        clock.now += 0.1
        depth.left(8, 0.05)
    assert depth.tokens == pytest.approx(4, rel=0.05)


def test_a_peer_is_known_to_be_full_soon_after_it_began() -> None:
    clock = Clock()
    depth = Depth(clock)
    for _ in range(10):
        clock.now += 0.1
        depth.left(8, 0.1)
    assert depth.tokens == pytest.approx(8, rel=0.15)


def test_depth_is_forgotten_when_nobody_comes_any_more() -> None:
    clock = Clock()
    depth = Depth(clock)
    clock.now = 1.0
    depth.left(100, 1.0)
    clock.now += 10 * MEMORY
    assert depth.tokens < 0.1


def test_an_idle_peer_has_none() -> None:
    assert Depth(Clock()).tokens == 0
