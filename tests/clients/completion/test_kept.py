"""What peers remember of complete answers, and what a prompt that begins alike saves."""

import asyncio
from dataclasses import replace

import pytest
from transformers import PreTrainedModel

from clients.completion.generation import Token
from clients.completion.kept import Kept, common
from clients.completion.limits import Limits
from clients.completion.rows import Row
from clients.completion.shared import SharedModel
from clients.model import SwarmModelForCausalLM
from tests.clients.completion.asking import Answers, ask, greedy, read
from tests.clients.completion.test_shared import prompt, request
from tests.clients.local_session import LocalConnection

pytestmark = pytest.mark.anyio


def turn(before: tuple[int, ...], answer: Answers, seed: int) -> tuple[int, ...]:
    """The next prompt of a chat."""
    return (*before, *answer.tokens(), *prompt(seed, 10))


async def test_turn_of_a_chat_costs_only_its_new_tokens(
    shared: SharedModel, connection: LocalConnection, local: PreTrainedModel
) -> None:
    asked = request(length=40)
    for number in range(1, 10):
        answer = await ask(shared, asked)
        assert answer.tokens() == greedy(local, asked.prompt, 6)
        connection.sent.clear()
        after = replace(asked, prompt=turn(asked.prompt, answer, number))
        again = await ask(shared, after)
        assert again.cached == len(asked.prompt) + 5  # the last token of an answer was not computed any more
        assert sum(tokens for tokens, _ in connection.sent) == 1 + 10 + 5
        asked = replace(after, prompt=turn(after.prompt, again, 50 + number))
    assert len(connection.sessions) == 1


async def test_edited_turn_goes_on_from_where_it_differs(
    shared: SharedModel, connection: LocalConnection, local: PreTrainedModel
) -> None:
    base = prompt(0, 40)
    first = replace(request(), prompt=(*base, 7, 8, 9))
    await ask(shared, first)
    edited = await ask(shared, replace(request(), prompt=(*base, 5, 6)))
    assert edited.cached == 40
    assert edited.tokens() == greedy(local, (*base, 5, 6), 6)
    again = await ask(shared, first)
    assert again.cached == 42
    assert again.tokens() == greedy(local, first.prompt, 6)


async def test_prompt_goes_on_from_a_row_that_is_being_computed(shared: SharedModel, local: PreTrainedModel) -> None:
    running = shared.submit(request(length=40, new=400))
    seen = 0
    async for event in running:
        seen += isinstance(event, Token)
        if seen == 3:
            break
    other = (*prompt(0, 40), 3)
    answer = await ask(shared, replace(request(), prompt=other))
    assert answer.cached == 40
    assert answer.tokens() == greedy(local, other, 6)
    await running.aclose()


async def test_what_is_not_to_be_kept_leaves_nothing_and_uses_nothing(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    async with SharedModel(model, Limits(lanes=1)) as shared:
        secret = replace(request(length=40), keep=False)
        await ask(shared, secret)
        assert (await ask(shared, secret)).cached == 0
        assert (await ask(shared, request(length=40))).cached == 0
        assert (await ask(shared, secret)).cached == 0
        running = shared.submit(replace(secret, max_new_tokens=200))
        async for event in running:
            if isinstance(event, Token):
                break
        assert (await ask(shared, request(7, length=40))).cached == 0
        await running.aclose()
        assert len(connection.sessions[0].positions) == 2  # of the two that may be kept
    assert shared.kept_tokens == 0


async def test_longest_unused_rows_go_first_when_there_are_too_many(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    async with SharedModel(model, Limits(lanes=1, kept_rows=2)) as shared:
        for seed in (1, 2, 1, 3):
            await ask(shared, request(seed, length=40))
        cached = [(await ask(shared, request(seed, length=40))).cached for seed in (3, 1, 2)]
    assert cached == [39, 39, 0]


async def test_tokens_that_are_kept_have_a_bound(model: SwarmModelForCausalLM, connection: LocalConnection) -> None:
    async with SharedModel(model, Limits(lanes=1, kept_tokens=200)) as shared:
        for seed in range(30):
            await ask(shared, request(seed, length=50))
            assert shared.kept_tokens <= 200 + 56
            assert sum(connection.sessions[0].positions.values()) <= 200 + 56


async def test_rows_are_forgotten_in_time(model: SwarmModelForCausalLM) -> None:
    now = 0.0
    async with SharedModel(model, Limits(lanes=1, kept_seconds=60), clock=lambda: now) as shared:
        await ask(shared, request(1, length=40))
        now = 59.0
        assert (await ask(shared, request(1, length=40))).cached == 39
        now = 200.0
        assert (await ask(shared, request(1, length=40))).cached == 0


async def test_lane_that_nobody_asks_gives_everything_back(
    model: SwarmModelForCausalLM, connection: LocalConnection, local: PreTrainedModel
) -> None:
    async with SharedModel(model, Limits(lanes=1, idle_seconds=0.01)) as shared:
        await ask(shared, request())
        assert await asyncio.to_thread(connection.sessions[0].gone.wait, 10)
        assert shared.kept_tokens == 0
        assert (await ask(shared, request())).tokens() == greedy(local, prompt(0), 6)


async def test_peers_keep_room_for_what_is_needed_and_no_more(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    async with SharedModel(model, Limits(lanes=1, kept_tokens=64)) as shared:
        long = shared.submit(request(length=900, new=100))
        async for event in long:
            if isinstance(event, Token):
                break
        (session,) = connection.sessions
        assert 1024 <= session.lease <= 1536
        await long.aclose()
        for seed in range(3):
            await ask(shared, request(seed))
        assert session.lease <= 1024


async def test_request_waits_until_peers_have_room(
    model: SwarmModelForCausalLM, connection: LocalConnection, local: PreTrainedModel
) -> None:
    connection.room = 1024
    async with SharedModel(model, Limits(lanes=1)) as shared:
        await ask(shared, request(9, length=300))  # kept, until there is no room for it
        first, second = (shared.submit(request(seed, length=500, new=20)) for seed in (1, 2))
        assert (await read(first)).tokens() == greedy(local, prompt(1, 500), 20)
        assert (await read(second)).tokens() == greedy(local, prompt(2, 500), 20)
        assert sum(connection.sessions[0].positions.values()) <= 1024


def test_common_beginnings_are_found_to_the_token() -> None:
    tokens = [*range(200)]
    for length in (0, 1, 63, 64, 65, 128, 199, 200):
        row = Row([*tokens[:length], 999, 999], done=length + 2)
        assert common(tokens, row) == length
    assert common(tokens, Row(tokens, done=100)) == 100
    assert common(tokens[:70], Row(tokens, done=100)) == 70


def test_row_that_is_used_again_is_the_youngest() -> None:
    kept = Kept(Limits(kept_rows=2))
    one, two, three = (Row([number] * 4, done=4) for number in range(3))
    for now, row in enumerate((one, two, one, three)):
        kept.add(row, float(now))
    assert kept.shrink(4.0)
    assert kept.rows == (one, three)
    assert not kept.shrink(4.0)
