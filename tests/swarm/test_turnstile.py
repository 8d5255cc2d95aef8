"""How often one peer is answered, in virtual time."""

import asyncio

import pytest

from swarm.errors import Busy
from swarm.ids import PeerId
from swarm.turnstile import KNOWN, Turnstile
from tests.virtual import run_virtual

A, B = PeerId("a"), PeerId("b")


def test_who_asks_more_often_waits_for_its_turn() -> None:
    async def main() -> float:
        turnstile = Turnstile(rate=10, burst=5, waiting=100)
        await asyncio.gather(*(turnstile.enter(A) for _ in range(25)))
        return asyncio.get_running_loop().time()

    began = run_virtual(_now())
    assert run_virtual(main()) - began == pytest.approx(2.0, abs=0.01)


def test_others_do_not_wait_for_it() -> None:
    async def main() -> None:
        turnstile = Turnstile(rate=10, burst=5, waiting=100)
        flood = [asyncio.create_task(turnstile.enter(A)) for _ in range(50)]
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        await turnstile.enter(B)
        assert asyncio.get_running_loop().time() == began
        assert not all(each.done() for each in flood)
        await asyncio.gather(*flood)

    run_virtual(main())


def test_only_so_many_questions_wait() -> None:
    async def main() -> None:
        turnstile = Turnstile(rate=10, burst=2, waiting=3)
        answers = await asyncio.gather(*(turnstile.enter(A) for _ in range(9)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [type(None)] * 5 + [Busy] * 4
        await asyncio.sleep(1.0)
        await turnstile.enter(A)

    run_virtual(main())


def test_strangers_without_end_take_no_memory_without_end() -> None:
    async def main() -> None:
        turnstile = Turnstile(rate=10, burst=2, waiting=3)
        for number in range(2 * KNOWN):
            await turnstile.enter(PeerId(str(number)))
        assert len(turnstile._askers) == KNOWN

    run_virtual(main())


async def _now() -> float:
    return asyncio.get_running_loop().time()
