"""Ways to next hops, of which there are so many and no more."""

import asyncio
from collections.abc import Collection

from peers.ways import Ways
from swarm.ids import PeerId
from swarm.memory import MemoryNetwork
from swarm.outlet import Allowance
from tests.virtual import run_virtual

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
MOST = 2


def ways(used: Collection[PeerId]) -> Ways:
    return Ways(
        MemoryNetwork().transport(PeerId("here")),
        lambda: used,
        lambda _: (),
        lambda *_: None,
        waiting=lambda: Allowance(1000),
        most=MOST,
    )


def test_where_all_are_used_there_is_no_room_for_another() -> None:
    async def main() -> None:
        known = ways({A, B, C})
        first = known.begin(A)
        assert known.begin(B) is not None
        assert known.begin(C) is None
        assert known.known(A) is first
        assert len(known) == MOST
        await known.close()

    run_virtual(main())


def test_one_that_nobody_needs_makes_room() -> None:
    async def main() -> None:
        used = {A, B}
        known = ways(used)
        assert known.begin(A) is not None
        kept = known.begin(B)
        used.remove(A)
        assert known.begin(C) is not None
        assert known.known(A) is None
        assert known.known(B) is kept
        await known.close()

    run_virtual(main())


def test_one_that_has_ended_makes_room() -> None:
    async def main() -> None:
        known = ways({A, B, C})
        assert known.begin(A) is not None
        assert known.begin(B) is not None
        await asyncio.sleep(20)  # nobody is there
        assert known.begin(C) is not None
        await known.close()

    run_virtual(main())
