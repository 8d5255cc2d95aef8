"""Waiting counts the time that a machine sleeps."""

import asyncio

from swarm.passing import LOOK_SECONDS, pass_time
from tests.virtual import run_virtual


class Wall:
    """A clock that goes on while the loop's stands still."""

    def __init__(self) -> None:
        self.asleep = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.asleep


def waited(sleep_at: float, asleep: float, seconds: float) -> float:
    async def main() -> float:
        loop, wall = asyncio.get_running_loop(), Wall()
        loop.call_at(sleep_at, setattr, wall, "asleep", asleep)
        await pass_time(seconds, clock=wall)
        return loop.time()

    return run_virtual(main())


def test_without_sleep_it_is_as_long_as_it_says() -> None:
    assert waited(0.0, 0.0, 20.0) == 20.0


def test_what_was_due_during_sleep_is_done_soon_after_it() -> None:
    assert waited(7.0, 3600.0, 60.0) <= 7.0 + LOOK_SECONDS


def test_a_clock_that_is_set_back_makes_nobody_wait_longer() -> None:
    assert waited(7.0, -3600.0, 20.0) == 20.0


def test_it_ends_when_woken() -> None:
    async def main() -> float:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        loop.call_at(3.0, woken.set)
        await pass_time(20.0, woken=woken)
        return loop.time()

    assert run_virtual(main()) == 3.0
