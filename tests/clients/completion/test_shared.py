"""Many requests to one model: each gets what it would get alone."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from clients.completion.generation import Began, Finished, Token
from clients.completion.limits import Limits
from clients.completion.request import Request, Sampling
from clients.completion.shared import SharedModel
from clients.events import ChainChanged
from clients.model import SwarmModelForCausalLM
from swarm.errors import Busy, SwarmError, UsageError
from tests.clients.completion.asking import GREEDY, ask, greedy, read
from tests.clients.local_session import LocalConnection
from tests.models import FAMILIES

pytestmark = pytest.mark.anyio


def prompt(seed: int, length: int = 12) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(3, 128), k=length))


def request(seed: int = 0, length: int = 12, new: int = 6) -> Request:
    return Request(prompt=prompt(seed, length), max_new_tokens=new, sampling=GREEDY)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
async def test_requests_of_every_family_get_the_tokens_of_one_process(
    shared: SharedModel, local: PreTrainedModel
) -> None:
    requests = [request(seed, length) for seed, length in enumerate((1, 5, 40, 12))]
    answers = await asyncio.gather(*(ask(shared, each) for each in requests))
    assert [a.tokens() for a in answers] == [greedy(local, r.prompt, 6) for r in requests]
    assert [a.reasons for a in answers] == [{0: "length"}] * 4


async def test_steps_of_many_requests_are_one(
    model: SwarmModelForCausalLM, connection: LocalConnection, local: PreTrainedModel
) -> None:
    connection.gate.clear()
    async with SharedModel(model, Limits(lanes=1)) as shared:
        generations = [shared.submit(request(seed)) for seed in range(8)]
        connection.gate.set()
        answers = [await read(generation) for generation in generations]
    assert [a.tokens() for a in answers] == [greedy(local, prompt(seed), 6) for seed in range(8)]
    assert len(connection.sent) <= 2 + 6  # the first to come may be ahead of the others


async def test_first_event_tells_the_chain_then_that_it_began(shared: SharedModel) -> None:
    await ask(shared, request())
    events = (await ask(shared, request())).events
    told = [type(event) for event in events if isinstance(event, ChainChanged | Began | Token | Finished)]
    assert told[:2] in ([ChainChanged, Began], [Began, ChainChanged])  # the second where a lane had no chain yet
    assert told[2:] == [Token] * 6 + [Finished]


async def test_choices_share_the_prompt(
    model: SwarmModelForCausalLM, connection: LocalConnection, local: PreTrainedModel
) -> None:
    async with SharedModel(model) as shared:
        answers = await ask(shared, replace(request(length=40), choices=3))
    assert [answers.tokens(choice) for choice in range(3)] == [greedy(local, prompt(0, 40), 6)] * 3
    assert sum(tokens for tokens, _ in connection.sent) == 40 + 3 * 5


async def test_choices_of_a_sampled_request_differ(shared: SharedModel) -> None:
    answers = await ask(shared, replace(request(new=16), choices=3, sampling=Sampling(seed=1)))
    assert len({tuple(answers.tokens(choice)) for choice in range(3)}) == 3


async def test_same_seed_gives_the_same_tokens_whoever_else_is_served(shared: SharedModel) -> None:
    seeded = replace(request(length=30, new=24), sampling=Sampling(seed=7, temperature=1.3, top_p=0.9), choices=2)
    alone = await ask(shared, seeded)
    others = [shared.submit(replace(request(seed, length=9 * seed + 1), sampling=Sampling())) for seed in range(6)]
    crowded = await ask(shared, seeded)
    for other in others:
        await other.aclose()
    assert [crowded.tokens(choice) for choice in range(2)] == [alone.tokens(choice) for choice in range(2)]


async def test_stop_token_ends_an_answer_and_is_part_of_it(shared: SharedModel, local: PreTrainedModel) -> None:
    tokens = greedy(local, prompt(0), 6)
    answers = await ask(shared, replace(request(), stop_tokens=frozenset({tokens[3]})))
    assert answers.tokens() == tokens[: tokens.index(tokens[3]) + 1]
    assert answers.reasons == {0: "stop"}


async def test_answer_ends_where_the_context_ends(shared: SharedModel) -> None:
    answers = await ask(shared, request(length=1021, new=100))
    assert len(answers.tokens()) == 3
    assert answers.reasons == {0: "length"}


async def test_log_probabilities_are_the_model_s_own(shared: SharedModel, local: PreTrainedModel) -> None:
    asked = replace(request(), logprobs=3, sampling=Sampling(temperature=0.0, logit_bias={5: 100.0}))
    answers = await ask(shared, asked)
    tokens = [event for event in answers.events if isinstance(event, Token)]
    assert [token.id for token in tokens] == [5] * 6
    with torch.no_grad():
        expected = local(torch.tensor([prompt(0)])).logits[0, -1].log_softmax(-1)
    assert tokens[0].logprob == pytest.approx(float(expected[5]), abs=1e-4)
    assert [token for token, _ in tokens[0].top] == expected.topk(3).indices.tolist()
    assert [value for _, value in tokens[0].top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)


class Countdown:
    """Allows the tokens of a list one after another, and then nothing more."""

    def __init__(self, *tokens: int) -> None:
        self.left = list(tokens)

    def mask(self, logits: Tensor) -> None:
        allowed = self.left[:1]
        kept = logits[allowed].clone()
        logits.fill_(-float("inf"))
        logits[allowed] = kept

    def accept(self, token: int) -> None:
        assert self.left.pop(0) == token


async def test_constraint_decides_and_its_end_is_the_answer_s(shared: SharedModel) -> None:
    answers = await ask(shared, replace(request(), constraint=lambda: Countdown(9, 4, 7), choices=2))
    assert [answers.tokens(choice) for choice in range(2)] == [[9, 4, 7]] * 2
    assert answers.reasons == {0: "stop", 1: "stop"}


async def test_constraint_that_fails_ends_only_its_own_request(shared: SharedModel, local: PreTrainedModel) -> None:
    class Broken(Countdown):
        def accept(self, token: int) -> None:
            raise ValueError("the grammar is broken")

    other = shared.submit(request(1))
    with pytest.raises(SwarmError, match="the grammar is broken"):
        await ask(shared, replace(request(), constraint=lambda: Broken(9, 4), choices=2))
    assert (await read(other)).tokens() == greedy(local, prompt(1), 6)


async def test_choice_that_is_ended_says_no_more_and_the_others_go_on(
    shared: SharedModel, local: PreTrainedModel
) -> None:
    generation = shared.submit(replace(request(new=20), choices=2))
    seen: list[Token | Finished] = []
    async for event in generation:
        if isinstance(event, Token | Finished):
            seen.append(event)
            if event.choice == 0:
                generation.end(0)
    assert len([event for event in seen if event.choice == 0]) == 1
    assert [event.id for event in seen if isinstance(event, Token) and event.choice == 1] == greedy(
        local, prompt(0), 20
    )
    assert shared.running == 0


async def test_closing_stops_within_one_step_and_frees_rows(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    async with SharedModel(model, Limits(lanes=1)) as shared:
        generation = shared.submit(replace(request(new=500), keep=False))
        async for event in generation:
            if isinstance(event, Token):
                break
        await generation.aclose()
        steps = len(connection.sent)
        assert shared.running == 0
        assert connection.sessions[0].positions == {}
        await ask(shared, request(new=1))
        assert len(connection.sent) == steps + 1
        await generation.aclose()
        assert [event async for event in generation] == []


async def test_reader_that_falls_behind_makes_only_itself_wait(
    model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    async with SharedModel(model, Limits(lanes=1, unread=4)) as shared:
        slow = shared.submit(request(new=200))
        assert (await ask(shared, request(1, new=60))).tokens() == greedy(local, prompt(1), 60)
        assert shared.running == 1
        assert (await read(slow)).tokens() == greedy(local, prompt(0), 200)


async def test_requests_beyond_what_may_wait_are_refused(
    model: SwarmModelForCausalLM, connection: LocalConnection, local: PreTrainedModel
) -> None:
    connection.gate.clear()
    async with SharedModel(model, Limits(lanes=1, rows=2, waiting=2)) as shared:
        taken = [shared.submit(request(seed)) for seed in range(4)]
        with pytest.raises(Busy) as refused:
            shared.submit(request(9))
        assert refused.value.retry_after > 0
        connection.gate.set()
        answers = [await read(generation) for generation in taken]
        assert [a.tokens() for a in answers] == [greedy(local, prompt(seed), 6) for seed in range(4)]
        await ask(shared, request(9))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ()}, "empty"),
        ({"prompt": prompt(0, 1024)}, "no room for an answer"),
        ({"prompt": (3, 128)}, "not among the 128"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"choices": 65}, "1 to 64 choices"),
        ({"logprobs": 21}, "0 to 20"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p"),
        ({"sampling": Sampling(logit_bias={128: 1.0})}, "logit_bias"),
    ],
)
async def test_what_can_never_be_answered_is_refused(shared: SharedModel, change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        shared.submit(replace(request(), **change))  # type: ignore[arg-type]


async def test_closing_ends_what_runs_and_closes_sessions(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    shared = SharedModel(model)
    connection.gate.clear()
    running = [shared.submit(request(seed, new=100)) for seed in range(4)]
    await asyncio.to_thread(connection.waiting.wait)
    await shared.aclose()
    for generation in running:
        with pytest.raises(SwarmError, match="closed"):
            await read(generation)
    assert connection.open_sessions == 0
    with pytest.raises(UsageError, match="closed"):
        shared.submit(request())
    await shared.aclose()


async def test_model_that_only_looks_like_text_reads_and_writes_text(
    text_shared: SharedModel, text_folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    answers = await ask(text_shared, Request(prompt=tuple(chat["input_ids"]), max_new_tokens=4, sampling=GREEDY))
    assert len(tokenizer.decode(answers.tokens())) > 0
