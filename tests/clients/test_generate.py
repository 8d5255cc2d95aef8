"""`generate` through a session gives what the whole model gives in one process."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria, set_seed
from transformers.generation.streamers import BaseStreamer

from clients.model import SwarmModelForCausalLM
from swarm.errors import NetworkError
from tests.clients.local_session import LocalConnection
from tests.clients.seen import Seen
from tests.models import FAMILIES

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])
PADDED = torch.tensor([[0, 0, 0, 5, 6, 7], [9, 10, 11, 12, 13, 14], [0, 20, 21, 22, 23, 24], [0, 0, 0, 0, 0, 30]])
MASK = (PADDED != 0).long()

all_families = pytest.mark.parametrize("family", FAMILIES, indirect=True)


def both(model: SwarmModelForCausalLM, local: PreTrainedModel, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """What each of them generates, from equal seeds."""
    results = []
    for each in (model, local):
        set_seed(7)
        results.append(each.generate(ids, **{"max_new_tokens": 12, "eos_token_id": None, **options}))
    return results[0], results[1]


@all_families
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "temperature": 1.3, "top_k": 20},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 3},
        {"use_cache": False},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_generates_the_tokens_of_the_whole_model(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection, options: dict[str, Any]
) -> None:
    remote, expected = both(model, local, PROMPT, **options)
    assert remote.tolist() == expected.tolist()
    assert connection.open_sessions == 0


@all_families
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}], ids=lambda o: "-".join(o) or "greedy")
def test_a_left_padded_batch_generates_the_tokens_of_the_whole_model(
    model: SwarmModelForCausalLM, local: PreTrainedModel, options: dict[str, Any]
) -> None:
    remote, expected = both(model, local, PADDED, attention_mask=MASK, **options)
    assert remote.tolist() == expected.tolist()


@all_families
def test_a_chat_goes_on_from_its_cache(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection
) -> None:
    with model.new_cache() as cache:
        first = model.generate(PROMPT, max_new_tokens=5, eos_token_id=None, past_key_values=cache)
        assert connection.open_sessions == 1
        longer = torch.cat([first, torch.tensor([[40, 41, 42]])], dim=1)
        connection.sent.clear()
        second = model.generate(longer, max_new_tokens=5, eos_token_id=None, past_key_values=cache)
    assert connection.sent[0] == (4, 1)  # the last token of the answer, and the three new ones
    assert connection.open_sessions == 0
    assert second.tolist() == local.generate(longer, max_new_tokens=5, eos_token_id=None).tolist()


@all_families
def test_scores_are_those_of_the_whole_model(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True, "eos_token_id": None}
    ours, theirs = model.generate(PROMPT, **options), local.generate(PROMPT, **options)
    torch.testing.assert_close(ours.scores, theirs.scores)
    assert ours.past_key_values.closed


def test_a_padded_chat_goes_on_from_its_cache(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    more = torch.tensor([[40, 41], [42, 43], [44, 45], [46, 47]])
    with model.new_cache() as cache:
        first = model.generate(PADDED, attention_mask=MASK, max_new_tokens=4, eos_token_id=None, past_key_values=cache)
        longer = torch.cat([first, more], dim=1)
        options = {"attention_mask": (longer != 0).long(), "max_new_tokens": 6, "eos_token_id": None}
        options["attention_mask"][:, MASK.shape[1] :] = 1
        second = model.generate(longer, past_key_values=cache, **options)
    assert second.tolist() == local.generate(longer, **options).tolist()


def test_a_chat_goes_on_after_assisted_decoding(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    options = {"max_new_tokens": 9, "eos_token_id": None}
    with model.new_cache() as cache:
        first = model.generate(PROMPT, past_key_values=cache, prompt_lookup_num_tokens=4, **options)
        longer = torch.cat([first, PROMPT], dim=1)
        second = model.generate(longer, past_key_values=cache, **options)
    assert second.tolist() == local.generate(longer, **options).tolist()


def test_a_small_local_model_may_assist(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    remote = model.generate(PROMPT, assistant_model=local, max_new_tokens=12, eos_token_id=None)
    assert remote.tolist() == local.generate(PROMPT, max_new_tokens=12, eos_token_id=None).tolist()


def test_long_prompts_may_be_cut_by_the_library(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    options = {"prefill_chunk_size": 4, "max_new_tokens": 5, "eos_token_id": None}
    assert model.generate(PROMPT, **options).tolist() == local.generate(PROMPT, **options).tolist()


def test_generation_may_begin_with_embeddings(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    results = [
        each.generate(inputs_embeds=each.get_input_embeddings()(PROMPT), max_new_tokens=5, eos_token_id=None)
        for each in (model, local)
    ]
    assert results[0].tolist() == results[1].tolist()


def test_equal_prompts_are_computed_once(model: SwarmModelForCausalLM, connection: LocalConnection) -> None:
    model.generate(PROMPT, num_beams=3, max_new_tokens=3, eos_token_id=None)
    assert connection.sent[0] == (12, 1)
    assert connection.sessions[0].lease == 12 + 3 * 2


def test_processors_and_criteria_and_streamers_work(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    class Only(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.index_fill(1, torch.arange(50), float("-inf"))

    class AfterFive(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
            return torch.tensor([input_ids.shape[1] >= PROMPT.shape[1] + 5])

    results, streamers = [], [Seen(), Seen()]
    for each, streamer in zip((model, local), streamers, strict=True):
        results.append(
            each.generate(
                PROMPT,
                max_new_tokens=20,
                eos_token_id=None,
                logits_processor=[Only()],
                stopping_criteria=[AfterFive()],
                streamer=streamer,
            ).tolist()
        )
    assert results[0] == results[1]
    assert len(results[0][0]) == PROMPT.shape[1] + 5
    assert streamers[0].tokens == streamers[1].tokens == [*results[0][0], -1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_session_is_closed_when_generate_fails(
    model: SwarmModelForCausalLM, connection: LocalConnection, error: type[BaseException]
) -> None:
    class Breaks(BaseStreamer):
        def put(self, value: Tensor) -> None:
            if value.numel() == 1:
                raise error

        def end(self) -> None: ...

    with pytest.raises(error):
        model.generate(PROMPT, max_new_tokens=5, streamer=Breaks())
    assert len(connection.sessions) == 1
    assert connection.open_sessions == 0


def test_closing_the_connection_ends_a_generation_with_a_sentence(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    class Closes(BaseStreamer):
        def put(self, value: Tensor) -> None:
            if value.numel() == 1:
                connection.close()

        def end(self) -> None: ...

    with pytest.raises(NetworkError, match="closed"):
        model.generate(PROMPT, max_new_tokens=5, eos_token_id=None, streamer=Closes())
