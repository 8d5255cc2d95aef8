"""Bytes that several ask for at once."""

import asyncio

from clients.federated.frames import content
from tests.clients.federated.test_member import Run, terms
from tests.virtual import run_virtual


def test_two_who_ask_for_the_same_bytes_at_once_both_get_them() -> None:
    async def main() -> None:
        async with Run(terms()) as run:
            here, there = [await run.member() for _ in range(2)]
            await asyncio.sleep(1.0)
            (peer,) = here.peers
            data = b"a change"
            there._blobs.kept[content(data)] = data
            fetching = (here._blobs.fetch(content(data), len(data), [peer]) for _ in range(2))
            assert await asyncio.gather(*fetching) == [data, data]

    run_virtual(main())
