"""Whatever else is asked, cancelled and killed meanwhile: every answer is that of one process, and nothing is left."""

import asyncio
import random
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from clients.client import Client
from clients.completion.generation import Token
from clients.completion.handle import Handle
from clients.completion.limits import Limits
from clients.completion.request import Request
from clients.completion.shared import SharedModel
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import resolve
from swarm.ids import Span
from swarm.memory import MemoryNetwork
from tests.clients.completion.asking import GREEDY, Answers, greedy
from tests.clients.virtual_connection import VirtualConnection
from tests.memory_swarm import MemorySwarm

SPANS = (Span(0, 2), Span(2, 4))
LIMITS = Limits(lanes=2, rows=6, prompt_tokens=32, beside_tokens=8, unread=8, kept_rows=3, kept_tokens=160)


@dataclass(frozen=True)
class Ask:
    """A prompt of `tokens` new tokens after `share` percent of what an earlier request had and was answered."""

    tokens: int
    new: int
    share: int = 0
    choices: int = 1
    keep: bool = True


@dataclass(frozen=True)
class Read:
    """Of all that runs, so many tokens are read."""

    tokens: int


@dataclass(frozen=True)
class Cancel:
    which: int


@dataclass(frozen=True)
class Kill:
    """The peers of a span die some time into the next steps; another one has come."""

    span: int
    after: float  # virtual seconds


Act = Ask | Read | Cancel | Kill
asks = st.builds(
    Ask,
    st.integers(1, 70),
    st.integers(1, 12),
    st.sampled_from((0, 0, 50, 100)),
    st.sampled_from((1, 1, 1, 3)),
    st.sampled_from((True, True, False)),
)
acts = st.one_of(
    asks,
    asks,
    st.builds(Read, st.integers(1, 10)),
    st.builds(Cancel, st.integers(0, 9)),
    st.builds(Kill, st.integers(0, 1), st.sampled_from((0.0, 0.05, 0.2))),
)


async def enter(swarm: MemorySwarm) -> Client:
    for index, blocks in enumerate(SPANS):
        await swarm.add(f"first{index}", blocks)
    return await swarm.client()


class Play:
    def __init__(self, shared: SharedModel, connection: VirtualConnection, local: PreTrainedModel) -> None:
        self.shared = shared
        self.connection = connection
        self.local = local
        self.names = count()
        self.serving = [[f"first{index}"] for index in range(len(SPANS))]
        self.random = random.Random(1)
        self.running: list[tuple[Request, Handle, Answers]] = []
        self.said: list[tuple[int, ...]] = []  # prompts with their answers

    async def do(self, act: Act) -> None:
        match act:
            case Ask():
                known = self.random.choice(self.said) if self.said else ()
                prompt = (*known[: len(known) * act.share // 100], *self.random.choices(range(3, 120), k=act.tokens))
                asked = Request(
                    prompt=prompt, max_new_tokens=act.new, choices=act.choices, keep=act.keep, sampling=GREEDY
                )
                self.running.append((asked, self.shared.submit(asked), Answers()))
            case Read():
                for _, handle, answers in self.running:
                    await self.read(handle, answers, act.tokens)
            case Cancel():
                if self.running:
                    asked, handle, answers = self.running.pop(act.which % len(self.running))
                    await handle.aclose()
                    self.check(asked, answers, whole=False)
            case Kill():
                await asyncio.to_thread(self.connection.run, self.kill(act))

    async def read(self, handle: Handle, answers: Answers, tokens: int) -> None:
        async for event in handle:
            answers.events.append(event)
            tokens -= isinstance(event, Token)
            if tokens <= 0:
                return

    async def kill(self, act: Kill) -> None:
        swarm, blocks = self.connection.swarm, SPANS[act.span]
        victims, name = self.serving[act.span], f"peer{next(self.names)}"
        await swarm.add(name, blocks)
        self.serving[act.span] = [name]

        async def die() -> None:
            for name in victims:
                if name in swarm.members:
                    await swarm.kill(name)

        self.connection.later(act.after, die)

    def check(self, asked: Request, answers: Answers, *, whole: bool) -> None:
        expected = greedy(self.local, asked.prompt, asked.max_new_tokens)
        for choice in range(asked.choices):
            tokens = answers.tokens(choice)
            assert tokens == (expected if whole else expected[: len(tokens)])
        if whole:
            assert answers.reasons == dict.fromkeys(range(asked.choices), "length")
            assert 0 <= answers.cached < len(asked.prompt)

    async def end(self) -> None:
        for asked, handle, answers in self.running:
            await self.read(handle, answers, 1000)
            self.check(asked, answers, whole=True)
            self.said.append((*asked.prompt, *answers.tokens()))
        self.running.clear()
        assert self.shared.running == 0


SCRIPT: list[list[Act]] = [  # what is remembered is lost with a peer, then asked for
    [Ask(40, 4), Ask(40, 4)],
    [Ask(10, 12), Kill(1, 0.0)],
    [Ask(3, 4, share=100), Ask(3, 4, share=100), Ask(3, 4, share=50)],
]


@pytest.mark.timeout(300)
@example(acts=SCRIPT)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(st.lists(acts, min_size=1, max_size=8), min_size=1, max_size=3))
def test_every_answer_is_that_of_one_process_whatever_happens_beside_it(
    folder: Path, tmp_path: Path, local: PreTrainedModel, acts: list[list[Act]]
) -> None:
    swarm = MemorySwarm(resolve(str(folder), cache=tmp_path), MemoryNetwork(delay=0.01))
    connection = VirtualConnection(swarm, enter)

    async def play(model: SwarmModelForCausalLM) -> None:
        async with SharedModel(model, LIMITS) as shared:
            play = Play(shared, connection, local)
            for some in acts:
                for act in some:
                    await play.do(act)
                await play.end()
        await asyncio.to_thread(connection.run, connection.rest())
        for name, member in swarm.members.items():
            stats = member.engine.stats()
            assert (stats.sessions, stats.rows) == (0, 0), name
            assert stats.kv_tokens_free == stats.kv_tokens, f"{name} leaked pages"

    try:
        with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=connection) as model:
            asyncio.run(play(model))
    finally:
        connection.close()
