"""Figures from answers that are written down by hand."""

import pytest

from clients.bench.answers import Answer, decode_rate, whole_rate
from clients.bench.reference import Weights
from clients.bench.report import CaseReport, case_floor, thread_counts
from clients.bench.steps import Profile, StepLog
from clients.bench.trial import Case, Layout, shares
from clients.bench.turns import Measured, Results, Turn
from clients.bench.wan import WanReport
from clients.events import Step
from swarm.errors import SwarmError, UsageError
from swarm.ids import Span
from swarm.rates import Rates
from tests.clients.bench.trials import swarm_trial, wan_trial

ONE, TWO = Case(Layout(2, "fp32"), 1), Case(Layout(2, "fp32"), 2)


def answer(begun: float, first: float, gap: float, tokens: int = 5) -> Answer:
    return Answer(begun, tuple(begun + first + index * gap for index in range(tokens)), tuple(range(tokens)))


def test_rate_of_one_answer_leaves_its_prompt_out() -> None:
    one = answer(begun=1.0, first=0.5, gap=0.1)
    assert one.first == pytest.approx(0.5)
    assert decode_rate([one]) == pytest.approx(10.0)
    assert whole_rate([one]) == pytest.approx(5 / 0.9)


def test_rate_of_several_counts_the_time_in_which_some_wait_for_others() -> None:
    """One after another is no faster than one, however fast each is in its turn."""
    both = [answer(0.0, 0.5, 0.1), answer(0.0, 0.9, 0.1)]
    assert decode_rate(both) == pytest.approx(8 / 0.8)
    assert whole_rate(both) == pytest.approx(10 / 1.3)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is half as fast in the second round does not show in the ratio."""
    turns = []
    for gap in (0.1, 0.2):
        turn = Turn(answer(0.0, 1.0, gap))
        turn.cases[ONE] = Measured([answer(0.0, 1.0, gap / 1.5)], [])
        turns.append(turn)
    report = CaseReport.of(ONE, Results(turns, {ONE: True}), most=100.0)
    assert (report.ratio.low, report.ratio.high) == (pytest.approx(1.5), pytest.approx(1.5))
    assert report.rate.low == pytest.approx(7.5)
    assert report.faithful is True
    assert report.profile is None


def test_profile_accounts_for_a_whole_token() -> None:
    steps = [Step(0.080, 1, ((1.0, 20.0), (2.0, 30.0)))] * 4
    profile = Profile.of(steps, [answer(0.0, 1.0, 0.1)])
    assert (profile.compute, profile.queue) == (50.0, 3.0)
    assert profile.whole == pytest.approx(100.0)
    assert profile.network == pytest.approx(27.0)
    assert profile.client == pytest.approx(20.0)


def test_step_log_tells_decoding_from_prompts() -> None:
    log = StepLog()
    for tokens in (64, 1, 2):
        log.hear(Step(0.1, tokens, ()))
    assert [step.tokens for step in log.decoding(most=2)] == [1, 2]
    log.clear()
    assert log.decoding(most=2) == []


def test_floor_of_one_session_is_sequential_and_of_many_is_bound_by_sums() -> None:
    weights = Weights(blocks=1000, head=500)
    rates = {1: Rates(1, bandwidth=1000.0, flops=1e9), 2: Rates(2, bandwidth=2000.0, flops=3000.0)}
    trial = swarm_trial(peers=(2,))
    assert thread_counts(trial, cores=2) == {1, 2}
    assert case_floor(ONE, weights, rates, trial, cores=2) == pytest.approx(1 / 6.0)
    assert case_floor(TWO, weights, rates, trial, cores=2) == pytest.approx(2 / 3.0)
    half = Case(Layout(2, "bf16"), 1)
    assert case_floor(half, weights, rates, trial, cores=2) == pytest.approx(1 / 4.0)
    small_head = swarm_trial(peers=(2,), client_head="int4")
    assert case_floor(ONE, weights, rates, small_head, cores=2) == pytest.approx(1 / 4.25)
    same_head = swarm_trial(peers=(2,), client_head="same")
    assert case_floor(ONE, weights, rates, same_head, cores=2) == pytest.approx(1 / 6.0)
    four_bits = (Case(Layout(2, "int4"), 1), weights, rates)
    assert case_floor(*four_bits, same_head, cores=2) == case_floor(*four_bits, small_head, cores=2)
    many = Case(Layout(2, "fp32"), 100)
    assert case_floor(many, weights, rates, trial, cores=2) == pytest.approx(1.0)


def test_blocks_are_shared_out_evenly_and_wholly() -> None:
    assert shares(30, 2) == [Span(0, 15), Span(15, 30)]
    assert [len(span) for span in shares(30, 4)] == [7, 8, 7, 8]
    assert shares(3, 3) == [Span(0, 1), Span(1, 2), Span(2, 3)]
    with pytest.raises(UsageError, match="only 3 blocks"):
        shares(3, 4)


# --- far apart --------------------------------------------------------------------------------------------------------


def far_profile(network: float = 110.0) -> Profile:
    return Profile(whole=network + 48.0, compute=40.0, queue=1.0, network=network, client=7.0)


def test_far_token_is_held_against_its_delays_and_names_where_the_rest_goes() -> None:
    trial = wan_trial(peers=3, delay=0.025, bandwidth=1e6)
    report = WanReport.of(trial, [far_profile()] * 3, token_bytes=1800, late=0.0005)
    assert report.delays == pytest.approx(100.0)
    assert report.sending == pytest.approx(8.0)
    assert report.late == pytest.approx(2.0)
    assert report.rest == pytest.approx(0.0)
    assert report.over.median == pytest.approx(158 / 147)
    assert report.strict.median == pytest.approx(158 / 140)
    parts = (report.delays, report.compute, report.client, report.queue, report.sending, report.late, report.rest)
    assert sum(parts) == pytest.approx(report.whole)


def test_token_that_was_faster_than_its_delays_is_an_error() -> None:
    with pytest.raises(SwarmError, match="found a way around the lines"):
        WanReport.of(wan_trial(), [far_profile(), far_profile(network=80.0)], token_bytes=100, late=0.0)
