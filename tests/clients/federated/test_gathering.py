"""Members who know no address meet in the directory, also among strangers and while it fails."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
import torch
from torch import Tensor

from clients.federated.links import PROTOCOL
from clients.federated.member import Member
from clients.federated.standing import Standing
from swarm.directory import Directory
from swarm.errors import NetworkError
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.memory import MemoryDirectory
from swarm.record import Presence
from swarm.transport import Stream
from swarm.wire import encode
from tests.clients.federated.test_member import SIZE, Run, same, terms
from tests.swarm.records import presence_of
from tests.virtual import run_virtual


def test_members_that_know_no_address_end_with_the_same_adapter() -> None:
    async def main() -> None:
        async with Run(terms(min_members=3), shelf={}) as run:
            early = [await run.member() for _ in range(2)]
            learning = [asyncio.create_task(run.learn(member, 1.0)) for member in early]
            await asyncio.sleep(7)
            late = await run.member()
            ends = await asyncio.gather(*learning, run.learn(late, 1.0))
        assert same(ends)
        assert ends[0].round == 4
        assert all(len(outcome.losses) == 3 for outcome in run.outcomes)

    run_virtual(main())


def test_strangers_under_the_key_of_a_run_keep_nobody_from_meeting() -> None:
    async def main() -> None:
        async with Run(terms(min_members=2), shelf={}) as run:
            place = run.terms.run.peer_id
            for _ in range(40):  # no directory takes them from who is no member; this one is told to have
                nobody = Identity.ephemeral().peer_id
                run.shelf[place, nobody] = presence_of(nobody, place)
            babbler = Identity.ephemeral().peer_id
            run.shelf[place, babbler] = presence_of(babbler, place)
            transport = run.network.transport(babbler)
            heard = []

            async def babble(stream: Stream) -> None:
                heard.append(await stream.receive())
                await stream.send(encode({"kind": "run", "signed": [babbler, b"?", b"?"]}))

            await transport.serve(PROTOCOL, babble)
            members = [await run.member() for _ in range(2)]
            ends = await asyncio.gather(*(run.learn(member, 1.0) for member in members))
            assert heard
        assert same(ends)
        assert all(len(outcome.losses) == 2 and not outcome.left_out for outcome in run.outcomes)

    run_virtual(main())


class Failing(MemoryDirectory):
    """Cannot be reached at first."""

    failures = 3

    async def present(self, run: PeerId) -> tuple[Presence, ...]:
        if self.failures:
            self.failures -= 1
            raise NetworkError("reading the DHT took more than 20 s")
        return await super().present(run)


def test_a_directory_that_fails_for_a_while_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> tuple[Standing, ...]:
        async with Run(terms(), shelf={}, directory=Failing) as run:
            members = [await run.member() for _ in range(2)]
            return tuple(await asyncio.gather(*(run.learn(member, 1.0) for member in members)))

    assert same(list(run_virtual(main())))
    assert "can't be found in the directory for now" in caplog.text


def test_who_has_gone_is_found_no_longer_after_some_minutes() -> None:
    async def main() -> None:
        async with Run(terms(), shelf={}) as run:
            member = await run.member()
            await asyncio.sleep(1)
            (presence,) = await MemoryDirectory(run.shelf).present(run.terms.run.peer_id)
            assert presence.peer == member._identity.peer_id
            later = MemoryDirectory(run.shelf, clock=lambda: time.time() + 300)
            assert await later.present(run.terms.run.peer_id) == ()

    run_virtual(main())


@pytest.mark.anyio
async def test_members_meet_over_a_real_dht_and_go_on_without_one_that_is_killed() -> None:
    async with AsyncExitStack() as stack:
        first, _ = await joined(stack, Identity.ephemeral(), ())
        agreed = terms(rounds=2)
        hosts, members = [], []
        for _ in range(3):
            identity = Identity.ephemeral()
            host, directory = await joined(stack, identity, await first.transport.addresses())
            begin = Standing.first(agreed, torch.zeros(SIZE))
            member = Member(host.transport, identity, agreed, begin, directory=directory, patience=60.0)
            hosts.append(host)
            members.append(await stack.enter_async_context(member))

        def dying(delta: Tensor) -> Tensor:
            if members[2].standing.round:
                hosts[2].p2p._child.kill()
            return delta

        run = Run(agreed)
        mortal = asyncio.create_task(run.learn(members[2], 1.0, seconds=0.0, lie=dying))
        ends = await asyncio.gather(*(run.learn(member, 1.0, seconds=0.0) for member in members[:2]))
        mortal.cancel()
        await asyncio.gather(mortal, return_exceptions=True)
        assert same(ends)


async def joined(stack: AsyncExitStack, identity: Identity, peers: Sequence[str]) -> tuple[Libp2pHost, Directory]:
    """The first of them begins a DHT, others come as clients do."""
    host = await stack.enter_async_context(await Libp2pHost.start(identity, initial_peers=peers))
    directory = await KademliaDirectory.start(host, identity, peers, client_mode=bool(peers), new_swarm=not peers)
    stack.push_async_callback(directory.close)
    return host, directory
