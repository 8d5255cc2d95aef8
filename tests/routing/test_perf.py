from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.perf import Costs, Link, Links, Pace, Profile, Stage, predict, time_limit
from swarm.ids import PeerId
from tests.routing.records import CLIENT, LINK, record

PROFILE = Profile(overhead=0.001, row=0.002, extra_row=0.0001, prompt_token=1 / 3000)
STAGES = st.lists(
    st.builds(Stage, st.just("hop"), LINK, st.floats(1e-4, 10), st.integers(0, 100)), min_size=1, max_size=5
)


def test_profile_gives_what_a_record_announces() -> None:
    assert PROFILE.decode(10) == pytest.approx(0.021)
    assert PROFILE.decode_rate(10) == pytest.approx(1 / 0.021)
    assert PROFILE.decode_rate(10, rows=16) == pytest.approx(16 / 0.036)
    assert PROFILE.prefill_rate(10) == pytest.approx(300.0)


def test_pace_of_a_record_is_its_announced_throughput_over_the_whole_span() -> None:
    announced = record("a", 0, 10, num_blocks=30, throughput=20.0, prefill=500.0)
    pace = Pace.of(announced, Costs(hop_overhead=0.0))
    assert pace.step(10) == pytest.approx(1 / 20)
    assert pace.step(5) == pytest.approx(1 / 40)
    assert pace.step(10, 101) == pytest.approx(1 / 20 + 100 / 500)


def test_peer_that_waits_in_line_is_waited_for_one_batch_at_most() -> None:
    costs = Costs(hop_overhead=0.0, batch_tokens=100)
    waits = [Pace.of(record("a", 0, 10, num_blocks=30, prefill=50.0, queue=q), costs).wait for q in (0, 10, 100, 9999)]
    assert waits == pytest.approx([0, 0.2, 2.0, 2.0])


def test_slow_prompts_are_never_predicted_slower_than_row_by_row() -> None:
    pace = Pace.of(record("a", 0, 10, num_blocks=30, throughput=20.0, prefill=1.0), Costs())
    assert pace.token == pace.row


@given(LINK, LINK, st.floats(0.01, 1.0))
def test_smoothed_link_lies_between_the_old_and_the_sample_and_tends_to_it(old: Link, new: Link, weight: float) -> None:
    link = old.updated(new, weight)
    for before, after, sample in ((old.delay, link.delay, new.delay), (old.bandwidth, link.bandwidth, new.bandwidth)):
        assert min(before, sample) <= after * (1 + 1e-9)
        assert after * (1 - 1e-9) <= max(before, sample)
    for _ in range(2000):
        link = link.updated(new, weight)
    assert link.delay == pytest.approx(new.delay, abs=1e-6)
    assert link.bandwidth == pytest.approx(new.bandwidth, rel=1e-3)


def test_unknown_link_is_estimated_from_the_ways_to_the_origin() -> None:
    a, b, c = (PeerId(name) for name in "abc")
    known = {(CLIENT, a): Link(0.01, 1e6), (b, CLIENT): Link(0.08, 1e5), (a, c): Link(0.5, 1e4)}
    links = Links(Link(0.02, 1e7), known, CLIENT)
    assert links.between(a, b) == Link(0.08, 1e5)
    assert links.between(c, a) == Link(0.5, 1e4)
    assert links.between(b, c) == Link(0.02, 1e7)
    assert links.between(CLIENT, b) == Link(0.08, 1e5)
    assert links.between(a, a).transfer(10**9) == 0
    assert Links(Link(0.02, 1e7), known).between(a, b) == Link(0.02, 1e7)


@given(STAGES, LINK, st.integers(1, 8), st.integers(1, 10**5), st.data())
def test_worse_hops_and_links_are_never_predicted_better(
    stages: list[Stage], back: Link, rows: int, token_bytes: int, data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, len(stages) - 1))
    more = data.draw(st.floats(0, 10))
    slower_hop = [replace(s, seconds=s.seconds + more) if j == i else s for j, s in enumerate(stages)]
    link = Link(stages[i].link.delay + more, stages[i].link.bandwidth / (1 + more))
    slower_link = [replace(s, link=link) if j == i else s for j, s in enumerate(stages)]
    base = predict(stages, back, rows=rows, token_bytes=token_bytes)
    for worse in (slower_hop, slower_link, [*stages, stages[i]]):
        found = predict(worse, back, rows=rows, token_bytes=token_bytes)
        assert found.latency >= base.latency * (1 - 1e-9)
        assert found.throughput <= base.throughput * (1 + 1e-9)
        assert found.critical_seconds >= base.critical_seconds


@given(STAGES, LINK, st.integers(1, 8), st.integers(1, 10**5))
def test_predicted_latency_is_at_least_its_longest_part(
    stages: list[Stage], back: Link, rows: int, token_bytes: int
) -> None:
    found = predict(stages, back, rows=rows, token_bytes=token_bytes)
    assert found.latency >= found.critical_seconds
    assert found.memory == sum(stage.memory for stage in stages)
    assert found.uplink == token_bytes


def test_prediction_names_what_takes_longest() -> None:
    near, far = Link(0.001, 1e8), Link(0.2, 1e8)
    stages = [Stage("0:5 @ a", near, 0.05), Stage("5:9 @ b", near, 0.06)]
    assert predict(stages, near, token_bytes=1000).critical == "computing 5:9 @ b"
    assert predict(stages, far, token_bytes=1000).critical == "the way back to the client"
    assert predict([replace(stages[0], link=far)], near, token_bytes=1000).critical == "the way to 0:5 @ a"
    assert predict(stages, near, token_bytes=1000).throughput == pytest.approx(1 / 0.06)


def test_prompt_costs_the_uplink_all_its_tokens() -> None:
    link = Link(0.01, 1e6)
    prompt = predict([Stage("hop", link, 0.1)], link, rows=2, tokens=200, token_bytes=1000)
    assert prompt.uplink == 100_000
    assert prompt.latency == pytest.approx(0.01 + 0.2 + 0.1 + 0.01 + 0.002)


def test_time_limit_has_a_floor() -> None:
    assert time_limit(0.01, floor=1.0, factor=5.0) == 1.0
    assert time_limit(2.0, floor=1.0, factor=5.0) == 10.0
