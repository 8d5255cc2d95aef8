"""Failures as figures."""

import random
from pathlib import Path
from statistics import mean

import pytest
from rich.console import Console

from clients.bench.failing import Outcome, Remedy
from clients.bench.failure_report import FailureReport, Round, kept_by_mending, kept_by_restarts
from clients.bench.trial import FailuresTrial

TOKENS = tuple(range(100))
TRIAL = FailuresTrial(
    model="tiny",
    cache=Path("cache"),
    peers=3,
    delay=0.0,
    bandwidth=1e9,
    peer_threads=1,
    client_threads=1,
    prompt_tokens=8,
    new_tokens=100,
    rounds=2,
    probabilities=(0.0, 0.01),
    limit=6.0,
    seed=0,
)


def outcome(seconds: float, *recoveries: float, tokens: tuple[int, ...] = TOKENS) -> Outcome:
    return Outcome(seconds, tokens, 100, len(recoveries), 0.1, recoveries)


def a_round(slower: float) -> Round:
    """On a machine that is so many times slower."""
    return {
        (0.0, Remedy.OURS): outcome(10.0 * slower),
        (0.01, Remedy.OURS): outcome(12.5 * slower, 1.0, 1.5),
        (0.01, Remedy.REPLAY): outcome(20.0 * slower, 5.0, 5.0),
        (0.01, Remedy.RESTART): outcome(60.0, tokens=TOKENS[:40]),
    }


def test_rates_are_held_against_the_calm_one_of_the_same_round() -> None:
    said = FailureReport(TRIAL, [a_round(1.0), a_round(2.0)]).figures()
    ours = next(case for case in said["cases"] if case["remedy"] == "ours" and case["probability"])
    assert ours["rate"]["high"] == pytest.approx(8.0)
    assert ours["rate"]["low"] == pytest.approx(4.0)
    assert ours["kept"]["low"] == ours["kept"]["high"] == pytest.approx(0.8)
    assert ours["same"] is True
    assert said["recoveries"]["ours"]["mean"] == pytest.approx(1.25)
    assert ours["predicted"] == pytest.approx(kept_by_mending(0.01, 3, 0.1, 1.25))


def test_answer_that_never_ends_has_no_rate_but_what_is_to_be_expected() -> None:
    report = FailureReport(TRIAL, [a_round(1.0)])
    anew = next(case for case in report.figures()["cases"] if case["remedy"] == "restart")
    assert (anew["rate"], anew["kept"], anew["furthest"]) == (None, None, [40])
    assert 0 < anew["predicted"] < 1
    console = Console(width=200, record=True, quiet=False)
    for table in report.tables():
        console.print(table)
    assert "- (40 tokens in 6 times the time)" in console.export_text()


def test_tokens_that_differ_are_told() -> None:
    strange = a_round(1.0) | {(0.01, Remedy.REPLAY): outcome(20.0, tokens=(*TOKENS[:-1], 7))}
    cases = FailureReport(TRIAL, [strange]).figures()["cases"]
    assert [case["same"] for case in cases] == [True, True, False, True]


def test_prediction_for_mending_is_what_was_lost() -> None:
    assert kept_by_mending(0.0, 3, 0.03, 1.0) == 1.0
    assert kept_by_mending(0.01, 1, 0.03, 3.0) == pytest.approx(0.5)


def test_prediction_for_restarts_is_the_mean_of_many_played_answers() -> None:
    dice, steps = random.Random(1), []
    for _ in range(3000):
        taken = in_a_row = 0
        while in_a_row < 20:
            taken, in_a_row = taken + 1, in_a_row + 1
            if in_a_row < 20 and any(dice.random() < 0.02 for _ in range(3)):
                in_a_row = 0
        steps.append(taken)
    assert kept_by_restarts(0.02, 3, 20) == pytest.approx(20 / mean(steps), rel=0.05)
    assert kept_by_restarts(0.0, 3, 20) == 1.0
