"""Answers of a tiny model, alone and from several threads."""

import threading
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from clients.bench.answers import ask, ask_at_once, new_prompt
from clients.bench.reference import Reference, Weights
from clients.bench.turns import is_greedy
from swarm.rates import Rates

NEW = 6


def test_prompts_are_random_and_the_same_for_a_seed() -> None:
    one, same, other = (new_prompt(128, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (1, 20)


def test_answer_is_greedy_of_the_asked_length_and_timed(
    local: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = new_prompt(128, 10, seed=0)
    plain = ask(local, prompt, NEW)
    monkeypatch.setattr(local.generation_config, "eos_token_id", plain.tokens[0])
    answer = ask(local, prompt, NEW)
    assert answer.tokens == plain.tokens
    monkeypatch.setattr(local.generation_config, "eos_token_id", None)
    expected = local.generate(prompt, max_new_tokens=NEW, do_sample=False)  # type: ignore[operator]
    assert answer.tokens == tuple(expected[0, 10:].tolist())
    assert len(answer.at) == NEW
    assert answer.begun < answer.at[0]
    assert list(answer.at) == sorted(answer.at)


def test_several_are_asked_at_once_and_answered_in_order(local: PreTrainedModel) -> None:
    prompts = [new_prompt(128, 10, seed) for seed in range(3)]
    answers = ask_at_once(local, prompts, NEW)
    assert [answer.tokens for answer in answers] == [ask(local, prompt, NEW).tokens for prompt in prompts]


def test_failure_of_one_ends_all_and_is_told(local: PreTrainedModel) -> None:
    bad = torch.full((1, 10), 10_000)  # no such token
    with pytest.raises(IndexError):
        ask_at_once(local, [bad, new_prompt(128, 10, 0)], 500)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asks")]


def test_weights_are_counted_without_an_embedding_that_is_only_looked_up(local: PreTrainedModel) -> None:
    weights = Weights.of(local)  # its head is its embedding
    assert weights.head == 128 * 64
    assert weights.blocks == sum(p.numel() for p in local.parameters()) - weights.head
    assert weights.size("int8", "fp32") == weights.blocks + 4 * weights.head
    assert weights.operations(tokens=10, heads=1) == {"fp32": 2 * (10 * weights.blocks + weights.head)}
    assert weights.operations(10, 1, "int4") == {"int4": 20 * weights.blocks, "fp32": 2 * weights.head}


def test_reference_knows_what_a_token_must_take(local: PreTrainedModel) -> None:
    reference = Reference(local, "fp32", 1)
    rates = Rates(1, bandwidth=4.0, flops=1e12)
    assert reference.token_floor(rates) == reference.weights.blocks + reference.weights.head
    assert reference.ask(new_prompt(128, 4, 0), NEW).tokens


def test_answer_with_one_wrong_token_is_told_from_a_greedy_one(local: PreTrainedModel) -> None:
    prompt = new_prompt(128, 10, seed=3)
    answer = ask(local, prompt, NEW)
    assert is_greedy(local, prompt, answer)
    wrong = (*answer.tokens[:-1], (answer.tokens[-1] + 1) % 128)
    assert not is_greedy(local, prompt, replace(answer, tokens=wrong))
