"""Greedy decoding sends the next token before the library has done its bookkeeping, and sends nothing in vain."""

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria

from clients.model import SwarmModelForCausalLM
from swarm.errors import NetworkError
from tests.clients.local_session import LocalConnection
from tests.models import FAMILIES

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])
NEVER = 10**6  # no token's number
SECONDS = 30


class Stop(StoppingCriteria):
    """After so many tokens in all; the model's own criteria don't know."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self._tokens)


def test_the_next_step_is_under_way_while_criteria_are_asked(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    seen: list[bool] = []

    class Hold(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            connection.waiting.clear()
            connection.gate.clear()
            return scores

    class Look(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
            last = input_ids.shape[1] == PROMPT.shape[1] + 4
            seen.append(last or connection.waiting.wait(SECONDS))
            connection.gate.set()
            return torch.tensor([False])

    model.generate(PROMPT, max_new_tokens=4, eos_token_id=NEVER, logits_processor=[Hold()], stopping_criteria=[Look()])
    assert seen == [True] * 4


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
@pytest.mark.parametrize("rows", [1, 3])
def test_each_token_is_sent_once(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection, rows: int
) -> None:
    prompts = torch.cat([PROMPT, PROMPT + 3, PROMPT + 9])[:rows]
    expected = local.generate(prompts, max_new_tokens=8, eos_token_id=None)
    assert model.generate(prompts, max_new_tokens=8, eos_token_id=None).tolist() == expected.tolist()
    assert connection.sent == [(rows * PROMPT.shape[1], rows)] + [(rows, rows)] * 7
    end = int(expected[0, PROMPT.shape[1] + 4])
    first = expected[:1, PROMPT.shape[1] :].tolist()[0].index(end) + 1
    connection.sent.clear()
    model.generate(prompts[:1], max_new_tokens=8, eos_token_id=end)
    assert len(connection.sent) == first


def test_a_chat_goes_on_where_a_criterion_has_ended_it(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection
) -> None:
    more = torch.tensor([[30, 31]])
    with model.new_cache() as cache:
        once = model.generate(
            PROMPT, max_new_tokens=9, eos_token_id=NEVER, stopping_criteria=[Stop(15)], past_key_values=cache
        )
        assert once.shape == (1, 15)
        again = torch.cat([once, more], dim=1)
        got = model.generate(again, max_new_tokens=5, eos_token_id=NEVER, past_key_values=cache)
        assert got.tolist() == local.generate(again, max_new_tokens=5, eos_token_id=NEVER).tolist()
        assert cache.get_seq_length() == got.shape[1] - 1


def test_rows_that_end_early_are_no_obstacle(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    prompts = torch.cat([PROMPT, PROMPT + 3])
    plain = local.generate(prompts, max_new_tokens=8, eos_token_id=None)
    end = int(plain[1, PROMPT.shape[1] + 2])
    options = {"max_new_tokens": 8, "eos_token_id": end, "pad_token_id": 0}
    assert model.generate(prompts, **options).tolist() == local.generate(prompts, **options).tolist()


def test_closing_the_connection_with_the_next_step_under_way_ends_with_a_sentence(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    class Hold(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            connection.gate.clear()
            return scores

    class Close(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
            assert connection.waiting.wait(SECONDS)
            connection.close()
            return torch.tensor([False])

    with pytest.raises(NetworkError, match="closed while a step was under way"):
        model.generate(
            PROMPT, max_new_tokens=4, eos_token_id=NEVER, logits_processor=[Hold()], stopping_criteria=[Close()]
        )
