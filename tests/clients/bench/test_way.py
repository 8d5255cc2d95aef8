"""Long lines on a virtual clock: what arrives when."""

import asyncio

import pytest

from clients.bench.way import Lateness, Pacer, Way
from tests.virtual import run_virtual

DELAY = 0.025


def arrivals(way: Way, count: int) -> "asyncio.Task[list[tuple[bytes, float]]]":
    """What comes out of `way`, and when."""

    async def take() -> list[tuple[bytes, float]]:
        loop = asyncio.get_running_loop()
        return [(await way.get(), loop.time()) for _ in range(count)]

    return asyncio.create_task(take())


def test_everything_is_one_delay_late_and_nothing_waits_for_another() -> None:
    async def main() -> None:
        way = Way(DELAY, Pacer(bandwidth=1e12), Lateness())
        came = arrivals(way, 3)
        await way.put(b"one")
        await asyncio.sleep(0.010)
        await way.put(b"two")
        await way.put(b"three")
        found = await came
        assert [data for data, _ in found] == [b"one", b"two", b"three"]
        assert [when for _, when in found] == pytest.approx([DELAY, 0.010 + DELAY, 0.010 + DELAY])

    run_virtual(main())


def test_bytes_leave_no_faster_than_the_line_carries() -> None:
    async def main() -> None:
        way = Way(DELAY, Pacer(bandwidth=1000.0), Lateness())
        came = arrivals(way, 2)
        await way.put(b"x" * 100)
        await way.put(b"x" * 50)
        assert [when for _, when in await came] == pytest.approx([0.100 + DELAY, 0.150 + DELAY])

    run_virtual(main())


def test_connections_of_one_line_share_its_bandwidth() -> None:
    async def main() -> None:
        pacer, lateness = Pacer(bandwidth=1000.0), Lateness()
        one, two = Way(DELAY, pacer, lateness), Way(DELAY, pacer, lateness)
        came = [arrivals(one, 1), arrivals(two, 1)]
        await one.put(b"x" * 100)
        await two.put(b"x" * 100)
        assert [(await each)[0][1] for each in came] == pytest.approx([0.100 + DELAY, 0.200 + DELAY])

    run_virtual(main())


def test_line_that_rested_carries_no_faster_afterwards() -> None:
    async def main() -> None:
        way = Way(0.0, Pacer(bandwidth=1000.0), Lateness())
        await asyncio.sleep(5.0)
        came = arrivals(way, 1)
        await way.put(b"x" * 100)
        assert (await came)[0][1] == pytest.approx(5.100)

    run_virtual(main())


def test_sender_waits_while_too_much_is_under_way() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        way = Way(DELAY, Pacer(bandwidth=1e12), Lateness(), in_flight=10)
        came = arrivals(way, 2)
        await way.put(b"x" * 10)
        await way.put(b"y")
        assert loop.time() == pytest.approx(DELAY)
        assert [when for _, when in await came] == pytest.approx([DELAY, 2 * DELAY])

    run_virtual(main())


def test_lateness_is_kept_as_mean_and_worst() -> None:
    lateness = Lateness()
    assert lateness.mean == 0.0
    for seconds in (0.0, 0.001, 0.002):
        lateness.note(seconds)
    assert (lateness.mean, lateness.worst) == (0.001, 0.002)
