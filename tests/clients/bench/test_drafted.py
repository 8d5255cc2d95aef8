"""Drafts of a set quality, and what is said of them."""

import pytest
import torch
from transformers import PreTrainedModel

from clients.bench.drafted import Drafted, DraftReport, KnownText, ask_drafted
from clients.model import SwarmModelForCausalLM
from routing.drafting import expected_tokens
from swarm.errors import SwarmError

PROMPT = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.9, 1.0])
def test_a_known_text_is_drafted_as_well_as_is_wanted(acceptance: float) -> None:
    text = torch.randint(0, 128, (400,), generator=torch.manual_seed(0))
    drafter = KnownText(text, acceptance, 4, vocabulary=128, seed=0)
    right = []
    for at in range(40):
        draft = drafter.draft(text[None, :at], lambda kind: 0)
        assert draft is not None
        assert draft.sent == len(draft.tokens) == 4
        right.append(int((draft.tokens == text[at : at + 4]).cumprod(0).sum()))
    assert 1 + sum(right) / 40 == pytest.approx(expected_tokens(acceptance, 4), rel=0.04)


def test_an_answer_with_drafts_takes_fewer_trips(
    model: SwarmModelForCausalLM, local: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = local.generate(PROMPT, max_new_tokens=33, min_new_tokens=33, do_sample=False)[0, 5:].tolist()
    perfect = ask_drafted(model, PROMPT, answer, acceptance=1.0, length=7, seed=0)
    assert (perfect.tokens, perfect.trips, perfect.per_trip) == (32, 4, 8.0)
    assert ask_drafted(model, PROMPT, answer, acceptance=0.0, length=7, seed=0).trips >= 31
    monkeypatch.setattr(model.generation_config, "eos_token_id", answer[3])
    assert ask_drafted(model, PROMPT, answer, acceptance=1.0, length=7, seed=0).tokens == 32
    with pytest.raises(SwarmError, match="not the answer without"):
        ask_drafted(model, PROMPT, [(token + 1) % 128 for token in answer], acceptance=1.0, length=7, seed=0)


def test_tokens_of_a_trip_are_held_against_what_is_expected_of_such_drafts() -> None:
    answers = [Drafted(60, 20, 3.0, seconds=2.0), Drafted(60, 30, 2.0, seconds=6.0)]
    report = DraftReport.of(answers, [0.1, 0.2], acceptance=0.5, length=3)
    assert report.expected == pytest.approx(1.875)
    assert (report.per_trip.low, report.per_trip.high) == (2.0, 3.0)
    assert (report.share.low, report.share.high) == (pytest.approx(2 / 1.875), pytest.approx(3 / 1.875))
    assert (report.faster.low, report.faster.high) == (pytest.approx(2.0), pytest.approx(3.0))
