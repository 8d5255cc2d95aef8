"""Drafts over real engines, with delays in virtual time: trips saved, deaths survived, nothing left on peers."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from clients.client import Client
from clients.drafts import Draft, Drafter, Length
from clients.model import SwarmModelForCausalLM
from clients.speculation import Speculation
from routing.drafting import expected_tokens
from swarm.checkpoint import resolve
from swarm.ids import Span
from swarm.memory import MemoryNetwork
from tests.clients.virtual_connection import VirtualConnection
from tests.memory_swarm import MemorySwarm

DELAY = 0.025  # s one way
HOPS = 3
PROMPT = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])
GREEDY: dict[str, Any] = {"eos_token_id": None, "do_sample": False}


async def enter(swarm: MemorySwarm) -> Client:
    """Three hops, each with a spare."""
    for start, end in ((0, 1), (1, 3), (3, 4)):
        for name in ("peer", "spare"):
            await swarm.add(f"{name}{start}", Span(start, end))
    return await swarm.client()


@pytest.fixture
def connection(folder: Path, tmp_path: Path) -> Iterator[VirtualConnection]:
    checkpoint = resolve(str(folder), cache=tmp_path)
    connection = VirtualConnection(MemorySwarm(checkpoint, MemoryNetwork(delay=DELAY)), enter)
    yield connection
    connection.close()


@pytest.fixture
def model(folder: Path, tmp_path: Path, connection: VirtualConnection) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=connection) as model:
        yield model


class Guesser(Drafter):
    """Knows the text, and is right with a given probability at every token; `before` is told of each round."""

    def __init__(
        self,
        text: Tensor,
        acceptance: float,
        *,
        always: int | None = None,
        before: Callable[[int], object] = lambda round_: None,
    ) -> None:
        """`always`: as many guesses every time instead of as many as pay."""
        self._text = text[0]
        self._acceptance = acceptance
        self._always = always
        self._before = before
        self._dice = random.Random(0)
        self.lengths: list[int] = []

    def draft(self, tokens: Tensor, length: Length) -> Draft:
        self._before(len(self.lengths))
        rest = self._text[tokens.shape[1] :]
        wanted = min(length("guess") if self._always is None else self._always, len(rest))
        self.lengths.append(wanted)
        wrong = torch.tensor([self._dice.random() >= self._acceptance for _ in range(wanted)], dtype=torch.bool)
        return Draft("guess", torch.where(wrong, (rest[:wanted] + 1) % 128, rest[:wanted]), wanted)


@pytest.mark.parametrize(("acceptance", "length"), [(0.9, 8), (0.7, 4), (0.3, 2), (1.0, 12)])
def test_a_trip_gives_the_tokens_that_the_formula_expects(
    model: SwarmModelForCausalLM,
    local: PreTrainedModel,
    connection: VirtualConnection,
    acceptance: float,
    length: int,
) -> None:
    tokens = 240
    text = local.generate(PROMPT, max_new_tokens=tokens + length + 1, **GREEDY)
    guesser = Guesser(text, acceptance, always=length)
    with model.new_cache(PROMPT.shape[1] + tokens) as cache:
        first = model.generate(PROMPT, max_new_tokens=1, past_key_values=cache, **GREEDY)  # a chain, and the prompt
        started = connection.time()
        ours = model.generate(first, max_new_tokens=tokens, past_key_values=cache, draft=guesser, **GREEDY)
        seconds = connection.time() - started
    assert ours.tolist() == text[:, : ours.shape[1]].tolist()
    trip = (HOPS + 1) * DELAY + 2 * HOPS * 0.001  # a turn of an engine takes 1 ms; a fork may have its own
    assert tokens / (seconds / trip) >= 0.9 * expected_tokens(acceptance, length)


def test_the_draft_grows_while_it_is_right_and_ends_when_it_is_not(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: VirtualConnection
) -> None:
    text = local.generate(PROMPT, max_new_tokens=400, **GREEDY)
    lengths = {}
    for acceptance in (0.0, 0.5, 1.0):
        guesser = Guesser(text, acceptance)
        with model.new_cache() as cache:
            cache.speculation = Speculation(guesser, clock=connection.time)
            ours = model.generate(PROMPT, max_new_tokens=150, past_key_values=cache, draft=guesser, **GREEDY)
        assert ours.tolist() == text[:, : ours.shape[1]].tolist()
        settled = guesser.lengths[len(guesser.lengths) // 3 : -1]
        lengths[acceptance] = sum(settled) / len(settled)
    assert lengths[0.0] < 1.5 < lengths[0.5] < 16 < lengths[1.0]


@pytest.mark.parametrize("victim", [0, 1, 3])
def test_a_hop_that_dies_in_the_middle_of_drafts_leaves_tokens_identical(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: VirtualConnection, victim: int
) -> None:
    text = local.generate(PROMPT, max_new_tokens=40, **GREEDY)
    killed = []

    def kill(round_: int) -> None:
        if round_ == 3:
            peer = str(connection.sessions[0].chain.hops[{0: 0, 1: 1, 3: 2}[victim]].peer)
            killed.append(peer)
            connection.run(connection.swarm.kill(peer))

    ours = model.generate(PROMPT, max_new_tokens=40, draft=Guesser(text, 0.7, always=4, before=kill), **GREEDY)
    assert ours.tolist() == text.tolist()
    assert killed


def test_a_hop_that_dies_during_a_verification_leaves_tokens_identical(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: VirtualConnection
) -> None:
    text = local.generate(PROMPT, max_new_tokens=40, **GREEDY)

    def kill(round_: int) -> None:
        if round_ == 3:
            peer = str(connection.sessions[0].chain.hops[1].peer)
            connection.later(1.5 * DELAY, lambda: connection.swarm.kill(peer))

    ours = model.generate(PROMPT, max_new_tokens=40, draft=Guesser(text, 0.7, always=4, before=kill), **GREEDY)
    assert ours.tolist() == text.tolist()
    assert len(connection.swarm.members) == 5


def test_peers_keep_the_tokens_that_were_right_and_no_others(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: VirtualConnection
) -> None:
    text = local.generate(PROMPT, max_new_tokens=60, **GREEDY)
    standing: list[dict[int, int]] = []

    def look(_: int) -> None:
        if connection.sessions:
            chain = connection.sessions[0].chain
            legs, _ = connection.run(chain.roll_call(chain.legs, lambda _: 1.0))
            assert len(legs) == HOPS
            assert all(leg.rows == legs[0].rows for leg in legs)
            standing.append(dict(legs[0].rows))

    guesser = Guesser(text, 0.6, always=5, before=look)
    with model.new_cache() as cache:
        model.generate(PROMPT, max_new_tokens=40, past_key_values=cache, draft=guesser, **GREEDY)
        model.generate(text[:, : cache.get_seq_length() + 1], max_new_tokens=1, past_key_values=cache, **GREEDY)
        look(0)
        assert list(standing[-1].values()) == [cache.get_seq_length()]
    assert all(len(rows) == 1 for rows in standing)  # guesses that were wrong stand behind it until the next step
    assert max(sum(rows.values()) for rows in standing) <= PROMPT.shape[1] + 40 + 5
    connection.run(connection.rest())
    for member in connection.swarm.members.values():
        stats = member.engine.stats()
        assert (stats.sessions, stats.rows, stats.kv_tokens_free) == (0, 0, stats.kv_tokens)
