"""Drafts change how many trips a text takes, and nothing about the text."""

import copy
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria, set_seed

from clients.drafts import Draft, Drafter, Length
from clients.model import SwarmModelForCausalLM
from swarm.errors import UsageError
from tests.clients.local_session import LocalConnection
from tests.clients.seen import Seen
from tests.models import FAMILIES

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": None, "do_sample": False}
KINDS = ["oracle", "ngram", "model", "assistant_model", "prompt_lookup"]


class Oracle(Drafter):
    """Knows the text; every so many tokens it guesses wrongly."""

    def __init__(self, text: Tensor, wrong_every: int = 5) -> None:
        self.text = text.clone()
        self.text[:, PROMPT.shape[1] + wrong_every - 1 :: wrong_every] += 1
        self.text %= 128

    def draft(self, tokens: Tensor, length: Length) -> Draft | None:
        rest = self.text[0, tokens.shape[1] :]
        wanted = min(length("oracle"), len(rest))
        return Draft("oracle", rest[:wanted], wanted)


@pytest.fixture(scope="module")
def small(local: PreTrainedModel) -> PreTrainedModel:
    """A model that agrees with the whole one about half of the time."""
    torch.manual_seed(0)
    noisy = copy.deepcopy(local)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(parameter.std() * torch.randn_like(parameter), alpha=0.15)
    return noisy


def drafts(kind: str, text: Tensor, small: PreTrainedModel) -> dict[str, Any]:
    return {
        "ngram": {"draft": "ngram"},
        "model": {"draft": small},
        "oracle": {"draft": Oracle(text)},
        "assistant_model": {"assistant_model": small},
        "prompt_lookup": {"prompt_lookup_num_tokens": 4},
    }[kind]


# --- greedy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "oracle") for family in FAMILIES), *(("llama", kind) for kind in KINDS[1:])],
    indirect=["family"],
)
def test_greedy_tokens_are_those_without_drafts(
    model: SwarmModelForCausalLM, local: PreTrainedModel, small: PreTrainedModel, kind: str
) -> None:
    expected = local.generate(PROMPT, **GREEDY)
    assert model.generate(PROMPT, **GREEDY, **drafts(kind, expected, small)).tolist() == expected.tolist()


def test_good_drafts_save_trips(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection
) -> None:
    model.generate(PROMPT, **GREEDY, draft=local)
    assert len(connection.sent) <= 5
    assert all(tokens <= 1 + PROMPT.shape[1] + 32 for tokens, _ in connection.sent)


def test_drafts_that_are_never_right_cost_no_trip(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    text = local.generate(PROMPT, **{**GREEDY, "max_new_tokens": 60})
    wrong = Oracle(text, wrong_every=1)
    with model.new_cache() as cache:
        ours = model.generate(PROMPT, **{**GREEDY, "max_new_tokens": 60}, draft=wrong, past_key_values=cache)
        assert ours.tolist() == text.tolist()
        assert cache.speculation is not None
        tally = cache.speculation.tally
    assert (tally.rounds, tally.right) == (60, 0)


# --- what goes on, stops and streams ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_goes_on_from_its_cache_with_drafts(
    model: SwarmModelForCausalLM, local: PreTrainedModel, small: PreTrainedModel, connection: LocalConnection, kind: str
) -> None:
    ids, options = PROMPT, {**GREEDY, "max_new_tokens": 9}
    with model.new_cache() as cache:
        for turn in range(3):
            connection.sent.clear()
            expected = local.generate(ids, **options)
            ours = model.generate(ids, past_key_values=cache, **options, **drafts(kind, expected, small))
            assert ours.tolist() == expected.tolist()
            assert connection.sent[0][0] < 40 if turn else True
            assert sum(tokens for tokens, _ in connection.sent[:1]) - connection.sent[0][1] + 1 == (4 if turn else 12)
            assert cache.get_seq_length() == ours.shape[1] - 1
            ids = torch.cat([ours, torch.tensor([[40 + turn, 41, 42]])], dim=1)
    assert len(connection.sessions) == 1


def test_what_was_learnt_stays_with_the_chat(model: SwarmModelForCausalLM) -> None:
    with model.new_cache() as cache:
        first = model.generate(PROMPT, past_key_values=cache, draft="ngram", **GREEDY)
        learnt = cache.speculation
        model.generate(torch.cat([first, PROMPT], dim=1), past_key_values=cache, draft="ngram", **GREEDY)
        assert cache.speculation is learnt
        assert learnt is not None
        assert learnt.tally.rounds > 24


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [1, 8])
def test_a_stopping_criterion_stops_at_its_token_in_the_middle_of_a_draft(
    model: SwarmModelForCausalLM, local: PreTrainedModel, small: PreTrainedModel, kind: str, after: int
) -> None:
    class After(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
            return torch.tensor([input_ids.shape[1] >= PROMPT.shape[1] + after])

    text = local.generate(PROMPT, **GREEDY)
    asked = {**GREEDY, "stopping_criteria": [After()], "return_dict_in_generate": True, "output_scores": True}
    theirs, seen = local.generate(PROMPT, **asked), Seen()
    with model.new_cache() as cache:
        ours = model.generate(PROMPT, streamer=seen, past_key_values=cache, **asked, **drafts(kind, text, small))
        assert ours.sequences.tolist() == theirs.sequences.tolist()
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert seen.tokens == [*theirs.sequences[0].tolist(), -1]
        assert cache.get_seq_length() == PROMPT.shape[1] + after - 1
        more = model.generate(ours.sequences, past_key_values=cache, **{**GREEDY, "max_new_tokens": 4})
    assert more.tolist() == text[:, : more.shape[1]].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_token_ends_the_text_in_the_middle_of_a_draft(
    model: SwarmModelForCausalLM, local: PreTrainedModel, small: PreTrainedModel, kind: str
) -> None:
    text = local.generate(PROMPT, **GREEDY)
    options = {**GREEDY, "eos_token_id": int(text[0, PROMPT.shape[1] + 10])}
    expected = local.generate(PROMPT, **options)
    assert model.generate(PROMPT, **options, **drafts(kind, text, small)).tolist() == expected.tolist()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_with_drafts_gives_each_token_once(
    model: SwarmModelForCausalLM, local: PreTrainedModel, small: PreTrainedModel, kind: str
) -> None:
    expected = local.generate(PROMPT, **GREEDY)
    tokens = [token async for token in model.stream(PROMPT, **GREEDY, **drafts(kind, expected, small))]
    assert tokens == expected[0, PROMPT.shape[1] :].tolist()


def test_generation_with_drafts_may_begin_with_embeddings(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    ours = model.generate(inputs_embeds=model.get_input_embeddings()(PROMPT), draft="ngram", **GREEDY)
    theirs = local.generate(inputs_embeds=local.get_input_embeddings()(PROMPT), **GREEDY)
    assert ours.tolist() == theirs.tolist()


def test_a_padded_prompt_may_be_drafted_for(
    model: SwarmModelForCausalLM, local: PreTrainedModel, small: PreTrainedModel
) -> None:
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), PROMPT], dim=1)
    mask = (padded != 0).long()
    expected = local.generate(padded, attention_mask=mask, **GREEDY)
    for draft in ("ngram", local, small):
        assert model.generate(padded, attention_mask=mask, draft=draft, **GREEDY).tolist() == expected.tolist()


# --- sampling --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def distribution(local: PreTrainedModel, prompt: Tensor, top_k: int, length: int) -> dict[tuple[int, ...], float]:
    """The probability of each continuation of so many tokens, each of which is among the `top_k` likeliest."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for text, chance in chances.items():
            logits = local(torch.cat([prompt, torch.tensor([text], dtype=torch.int64)], dim=1)).logits[0, -1]
            values, tokens = logits.topk(top_k)
            for share, token in zip(values.softmax(0).tolist(), tokens.tolist(), strict=True):
                longer[*text, token] = chance * share
        chances = longer
    return chances


def chi_square(counts: Counter[tuple[int, ...]], chances: dict[tuple[int, ...], float], samples: int) -> float:
    assert set(counts) <= set(chances)
    return sum((counts[text] - samples * chance) ** 2 / (samples * chance) for text, chance in chances.items())


class Stubborn(Drafter):
    """Always guesses the same."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._tokens = torch.tensor(tokens)

    def draft(self, tokens: Tensor, length: Length) -> Draft | None:
        left = self._tokens[tokens.shape[1] - PROMPT.shape[1] :]
        length("stubborn")
        return Draft("stubborn", left, len(left)) if len(left) else None


@pytest.mark.parametrize("kind", ["stubborn", "model"])
def test_sampled_texts_are_as_frequent_as_without_drafts(
    model: SwarmModelForCausalLM, local: PreTrainedModel, small: PreTrainedModel, kind: str
) -> None:
    """Chi-square over all continuations: with 8 degrees of freedom 20.1 has a p-value of 0.01."""
    top_k, length, samples = 3, 2, 300
    chances = distribution(local, PROMPT, top_k, length)
    likeliest = max(chances, key=lambda text: chances[text])
    draft = Stubborn(likeliest) if kind == "stubborn" else small
    sampling = {"do_sample": True, "top_k": top_k, "max_new_tokens": length + 1, "eos_token_id": None}
    set_seed(11)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(samples):
        text = model.generate(PROMPT, draft=draft, **sampling)[0, PROMPT.shape[1] :].tolist()
        counts[tuple(text[:length])] += 1
    assert len(chances) == len(list(itertools.product(range(top_k), repeat=length)))
    assert chi_square(counts, chances, samples) < 20.1


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused_in_a_sentence(
    model: SwarmModelForCausalLM, local: PreTrainedModel, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'ngram', a model"):
        model.generate(PROMPT, draft="magic", **GREEDY)
    with pytest.raises(UsageError, match="two ways to draft"):
        model.generate(PROMPT, draft="ngram", assistant_model=local, **GREEDY)
    with pytest.raises(UsageError, match="one sequence at a time"):
        model.generate(PROMPT.repeat(2, 1), draft="ngram", **GREEDY)
    with pytest.raises(UsageError, match="need a cache"):
        model.generate(PROMPT, draft="ngram", use_cache=False, **GREEDY)
    other = AutoModelForCausalLM.from_config(type(local.config)(**{**local.config.to_dict(), "vocab_size": 64}))
    with pytest.raises(UsageError, match="vocabulary of 64 tokens"):
        model.generate(PROMPT, draft=other, **GREEDY)
