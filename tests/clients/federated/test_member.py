"""Rounds in virtual time: members who come, leave, die in the middle, lie, or were not asked."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.federated.member import Member, Outcome
from clients.federated.standing import Standing
from clients.federated.terms import Terms
from swarm.errors import SwarmError, UsageError
from swarm.fields import Contact
from swarm.identity import Identity
from swarm.memory import MemoryDirectory, MemoryNetwork, Shelf
from tests.virtual import run_virtual

SIZE = 8


def terms(**options: Any) -> Terms:
    return Terms(**{"name": "run", "size": SIZE, "rounds": 4, **options})


@dataclass
class Run:
    """Members who each pull the adapter half of the way to a place of their own."""

    terms: Terms
    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(delay=0.01))
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    first: Contact | None = None
    shelf: Shelf | None = None  # of the directory in which members meet, where they are not told of the first
    directory: type[MemoryDirectory] = MemoryDirectory
    outcomes: list[Outcome] = field(default_factory=list)

    async def __aenter__(self) -> "Run":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def member(self, *, patience: float = 300.0, begin: Standing | None = None, **other: Any) -> Member:
        terms = Terms(**{**{n: getattr(self.terms, n) for n in Terms.__slots__}, **other}) if other else self.terms
        identity = Identity.ephemeral()
        transport = self.network.transport(identity.peer_id)
        contacts = [self.first] if self.first and self.shelf is None else []
        directory = None if self.shelf is None else self.directory(self.shelf)
        begin = begin or Standing.first(terms, torch.zeros(SIZE))
        member = Member(transport, identity, terms, begin, contacts=contacts, directory=directory, patience=patience)
        self.first = self.first or Contact(identity.peer_id)
        return await self.stack.enter_async_context(member)

    async def learn(
        self, member: Member, place: float, *, seconds: float = 1.0, lie: Callable[[Tensor], Tensor] = lambda d: d
    ) -> Standing:
        standing = await member.settle()
        while standing.round < self.terms.rounds:
            await asyncio.sleep(seconds)
            delta = lie((torch.full((SIZE,), place) - standing.weights) / 2)
            self.outcomes.append(await member.share(delta, 100, float(delta.norm())))
            standing = await member.settle()
        await member.farewell()
        return standing

    def kill(self, member: Member) -> None:
        self.network.kill(member._identity.peer_id)


def same(standings: list[Standing]) -> bool:
    return len({standing.pack() for standing in standings}) == 1


def test_all_end_with_the_same_adapter_which_learned_from_everyone() -> None:
    async def main() -> None:
        async with Run(terms(min_members=4)) as run:
            members = [await run.member() for _ in range(4)]
            ends = await asyncio.gather(*(run.learn(m, place) for m, place in zip(members, (0, 1, 2, 5), strict=True)))
        assert same(ends)
        assert ends[0].round == 4
        torch.testing.assert_close(ends[0].weights, torch.full((SIZE,), 2 * (1 - 0.5**4)))
        assert all(outcome.done and not outcome.left_out for outcome in run.outcomes)

    run_virtual(main())


def test_one_that_dies_in_each_round_holds_up_nobody_and_changes_nothing_for_the_others() -> None:
    async def main() -> None:
        async with Run(terms(min_members=3)) as run:
            stay = [await run.member() for _ in range(3)]
            learning = [asyncio.create_task(run.learn(m, 1.0)) for m in stay]

            async def mortal() -> None:
                for _ in range(4):
                    member = await run.member()
                    learner = asyncio.create_task(run.learn(member, 1.0))
                    await asyncio.sleep(0.9)
                    run.kill(member)
                    learner.cancel()
                    await asyncio.gather(learner, return_exceptions=True)

            await mortal()
            ends = await asyncio.gather(*learning)
            elapsed = asyncio.get_running_loop().time()
        assert same(ends)
        torch.testing.assert_close(ends[0].weights, torch.full((SIZE,), 1 - 0.5**4))
        assert elapsed < 60  # not once the whole wait

    run_virtual(main())


@pytest.mark.parametrize("after", [0.005, 0.015, 0.025, 0.035, 0.045])
def test_a_death_between_any_two_frames_of_a_round_leaves_survivors_equal(after: float) -> None:
    async def main() -> None:
        async with Run(terms(min_members=2)) as run:
            members = [await run.member() for _ in range(4)]
            tasks = [asyncio.create_task(run.learn(m, float(i))) for i, m in enumerate(members)]
            await asyncio.sleep(1.05 + after)  # the first claims are under way
            run.kill(members[3])
            tasks[3].cancel()
            await asyncio.gather(tasks[3], return_exceptions=True)
            ends = await asyncio.gather(*tasks[:3])
        assert same(ends)

    run_virtual(main())


def test_who_comes_late_gets_the_adapter_and_takes_part() -> None:
    async def main() -> None:
        async with Run(terms(rounds=8, server="avgm")) as run:
            early = [await run.member() for _ in range(3)]
            learning = [asyncio.create_task(run.learn(m, 1.0)) for m in early]
            await asyncio.sleep(4)
            late = await run.member()
            begun = await late.settle()
            assert begun.round > 0
            ends = await asyncio.gather(*learning, run.learn(late, 1.0))
        assert same(ends)
        assert any(len(outcome.losses) == 4 for outcome in run.outcomes)

    run_virtual(main())


@pytest.mark.parametrize(("rule", "near"), [("mean", False), ("median", True), ("trimmed", True)])
def test_one_poisoner_of_five_is_neutralised_by_robust_rules(rule: str, near: bool) -> None:
    async def main() -> None:
        async with Run(terms(rule=rule, min_members=5, rounds=6)) as run:
            members = [await run.member() for _ in range(5)]
            honest = [run.learn(m, place) for m, place in zip(members, (0.9, 1.0, 1.0, 1.1), strict=False)]
            poison = run.learn(members[4], 0.0, lie=lambda delta: torch.full((SIZE,), -3.0))
            *ends, _ = await asyncio.gather(*honest, poison)
        assert same(ends)
        assert bool(((ends[0].weights - 1).abs() < 0.15).all()) == near

    run_virtual(main())


def test_who_says_that_a_run_has_begun_is_not_believed_alone_by_those_who_begin() -> None:
    async def main() -> None:
        async with Run(terms(min_members=3)) as run:
            liar = await run.member(begin=Standing(3, torch.full((SIZE,), 9.0), ()))
            members = [await run.member() for _ in range(4)]
            lying = asyncio.create_task(liar.settle())
            ends = await asyncio.gather(*(run.learn(m, 1.0) for m in members))
            lying.cancel()
            await asyncio.gather(lying, return_exceptions=True)
        assert same(ends)
        torch.testing.assert_close(ends[0].weights, torch.full((SIZE,), 1 - 0.5**4))

    run_virtual(main())


def test_one_who_is_left_of_a_run_is_believed_by_many_newcomers_since_others_have_signed() -> None:
    async def main() -> None:
        async with Run(terms(rounds=8, min_members=2)) as run:
            members = [await run.member() for _ in range(3)]
            learning = [asyncio.create_task(run.learn(m, 1.0)) for m in members]
            await asyncio.sleep(3.5)
            for member, task in zip(members[1:], learning[1:], strict=True):
                run.kill(member)
                task.cancel()
            await asyncio.gather(*learning[1:], return_exceptions=True)
            reached = members[0].standing.round
            late = [await run.member() for _ in range(3)]
            await asyncio.sleep(0.5)  # they see each other before they decide
            begun = await asyncio.gather(*(member.settle() for member in late))
            assert [standing.round >= reached > 0 for standing in begun] == [True] * 3
            ends = await asyncio.gather(learning[0], *(run.learn(m, 1.0) for m in late))
        assert same(ends)

    run_virtual(main())


@pytest.mark.parametrize(
    ("lie", "words"), [(lambda d: d * float("nan"), "not finite"), (lambda d: d + 1e6, "is allowed")]
)
def test_a_change_that_no_honest_member_would_send_is_left_out_and_named(
    lie: Callable[[Tensor], Tensor], words: str
) -> None:
    async def main() -> None:
        async with Run(terms(rounds=1, min_members=3)) as run:
            members = [await run.member() for _ in range(4)]
            liar = asyncio.create_task(run.learn(members[3], 1.0, lie=lie))
            ends = await asyncio.gather(*(run.learn(m, 1.0) for m in members[:3]))
            liar.cancel()
            await asyncio.gather(liar, return_exceptions=True)
        assert same(ends)
        named = [outcome.left_out.get(members[3]._identity.peer_id, "") for outcome in run.outcomes]
        assert sum(words in reason for reason in named) == 3

    run_virtual(main())


@pytest.mark.parametrize("other", [{"name": "another"}, {"rule": "median"}, {"training": {"rank": 4}}])
def test_who_has_another_name_or_other_settings_never_takes_part(other: dict[str, Any]) -> None:
    async def main() -> None:
        async with Run(terms()) as run:
            await run.member()
            stranger = await run.member(patience=30.0, **other)
            with pytest.raises(SwarmError, match="1 of at least 2 members"):
                await stranger.settle()
            assert not stranger.peers

    run_virtual(main())


def test_one_that_hangs_is_waited_for_once() -> None:
    async def main() -> None:
        async with Run(terms(rounds=6, min_members=2)) as run:
            members = [await run.member() for _ in range(3)]
            hanging = asyncio.create_task(run.learn(members[2], 1.0, seconds=1e6))
            ends = await asyncio.gather(*(run.learn(m, 1.0) for m in members[:2]))
            elapsed = asyncio.get_running_loop().time()
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)
        assert same(ends)
        assert elapsed < 2 * run.terms.wait

    run_virtual(main())


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"rule": "x"}, {"server": "x"}, {"rounds": 0}, {"clip": 0.0}, {"min_members": 0}]
)
def test_terms_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        terms(**wrong)
