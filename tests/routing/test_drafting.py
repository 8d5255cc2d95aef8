"""Draft lengths: what is expected of them, and what is learnt of drafts and rounds."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.drafting import Acceptance, RoundTime, draft_length, expected_tokens

RATE = st.floats(0.0, 1.0)
SECONDS = st.floats(1e-4, 10.0)


@given(RATE, st.integers(0, 40))
def test_expected_tokens_are_the_sum_over_how_far_a_draft_is_right(rate: float, length: int) -> None:
    assert expected_tokens(rate, length) == pytest.approx(sum(rate**n for n in range(length + 1)), rel=1e-6)


@given(RATE, SECONDS, SECONDS, st.integers(0, 32))
def test_no_other_length_gives_more_tokens_per_second(rate: float, base: float, more: float, limit: int) -> None:
    def pace(length: int) -> float:
        return expected_tokens(rate, length) / (base + more * length)

    chosen = draft_length(rate, lambda n: base + more * n, limit)
    assert 0 <= chosen <= limit
    assert pace(chosen) >= max(pace(n) for n in range(limit + 1)) * (1 - 1e-12)


def test_nothing_is_drafted_where_it_does_not_pay() -> None:
    assert draft_length(0.0, lambda n: 0.1 + 0.001 * n, 32) == 0  # never right
    assert draft_length(0.6, lambda n: 0.01 + 0.01 * n, 32) == 0  # a guess costs what a token costs
    assert draft_length(0.9, lambda n: 0.1, -1) == 0  # no room


def test_drafts_are_longer_on_slower_chains_and_for_better_drafters() -> None:
    lengths = [draft_length(0.8, lambda n, base=base: base + 0.002 * n, 32) for base in (0.003, 0.03, 0.3)]
    assert lengths == sorted(set(lengths))
    lengths = [draft_length(rate, lambda n: 0.1 + 0.002 * n, 32) for rate in (0.1, 0.5, 0.9, 1.0)]
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == 32


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_acceptance_tends_to_how_often_guesses_are_right(rate: float) -> None:
    dice, known = random.Random(0), Acceptance()
    for _ in range(300):
        right = next((n for n in range(6) if dice.random() >= rate), 6)
        known = known.updated(right, wrong=right < 6)
    assert known.rate == pytest.approx(rate, abs=0.12)


def test_acceptance_follows_a_text_that_changes() -> None:
    known = Acceptance()
    for _ in range(20):
        known = known.updated(5, wrong=False)
    good = known.rate
    for _ in range(40):
        known = known.updated(0, wrong=True)
    assert good > 0.9
    assert known.rate < 0.35


def test_a_bad_drafter_gets_another_chance_in_time() -> None:
    known = Acceptance()
    for _ in range(50):
        known = known.updated(0, wrong=True)
    worst = known.rate
    for _ in range(200):
        known = known.aged()
    assert worst < 0.05
    assert known.rate > 0.4


def test_a_round_takes_what_is_predicted_until_it_is_measured() -> None:
    time = RoundTime(0.1, 0.002)
    assert time(5) == pytest.approx(0.11)
    assert time.predicting(0.2, 0.004)(5) == pytest.approx(0.22)
    assert time.updated(0, 0.4)(0) == pytest.approx(0.4)
    assert time.updated(0, 0.4)(10) == pytest.approx(0.42)


@given(SECONDS, SECONDS, SECONDS)
def test_measured_rounds_outweigh_a_wrong_prediction(base: float, more: float, predicted: float) -> None:
    more = min(more, base)
    time = RoundTime(predicted, predicted)
    for n in range(120):
        time = time.updated(n % 5, base + more * (n % 5))
    for n in (0, 2, 8):
        assert time(n) == pytest.approx(base + more * n, rel=0.01, abs=0.15 * (abs(n - 2) + 1) * max(predicted, more))


@given(st.lists(st.tuples(st.integers(0, 32), SECONDS), max_size=30), SECONDS, SECONDS)
def test_whatever_is_measured_more_guesses_never_make_a_round_shorter(
    rounds: list[tuple[int, float]], base: float, more: float
) -> None:
    time = RoundTime(base, more)
    for length, seconds in rounds:
        time = time.updated(length, seconds)
    assert 0 < time(0) <= time(1) <= time(32)


def test_rounds_that_take_no_time_at_all_are_no_trouble() -> None:
    time = RoundTime(0.0, 0.0).updated(0, 0.0).updated(3, 0.0)
    assert draft_length(0.5, time, 8) == 8


def test_one_hiccup_is_not_taken_for_the_chain() -> None:
    time = RoundTime(0.1, 0.001)
    for n in range(20):
        time = time.updated(n % 4, 0.1)
    assert time.updated(2, 30.0)(2) < 0.13
