import math
from random import Random

import pytest

from routing.load import HALF, SLOW_HALF, Load, Loads
from routing.pairs import pairs
from routing.perf import Costs, Pace
from swarm.ids import PeerId
from tests.routing.crowd import Crowd
from tests.routing.records import NOW, record

A, B = PeerId("a"), PeerId("b")


def known(*queues: tuple[PeerId, int], issued: float = NOW) -> Loads:
    loads = Loads()
    loads.read([record(peer, 0, 4, num_blocks=4, queue=queue, issued=issued) for peer, queue in queues], NOW, 0.0)
    return loads


def queues(loads: Loads, now: float) -> list[float]:
    return [loads.now([record(peer, 0, 4, num_blocks=4)], now)[peer].queue for peer in (A, B)]


def both(loads: Loads, now: float) -> list[Load]:
    return list(loads.now([record(peer, 0, 4, num_blocks=4) for peer in (A, B)], now).values())


def test_the_freshest_word_of_a_peer_counts_whether_it_was_announced_or_answered() -> None:
    loads = known((A, 8), (B, 0))
    loads.heard(A, 2, 5.0)
    loads.read([record(A, 0, 4, num_blocks=4, queue=9, issued=NOW + 1)], NOW + 10, 10.0)  # said at 1.0, on this clock
    assert queues(loads, 10.0)[0] == 2
    loads.read([record(A, 0, 4, num_blocks=4, queue=4, issued=NOW + 8)], NOW + 10, 10.0)
    assert queues(loads, 10.0)[0] == 4


def test_the_older_its_figure_the_less_a_peer_is_told_from_others() -> None:
    loads = known((A, 8), (B, 0))
    assert [each.queue for each in both(loads, 0.0)] == [8, 0]
    assert [each.queue for each in both(loads, HALF)] == [6, 2]
    assert [each.queue for each in both(loads, 1e9)] == pytest.approx([4, 4])


def test_a_clock_that_is_wrong_makes_no_figure_fresher_than_now() -> None:
    loads = known((A, 8), (B, 0), issued=NOW + 1e6)
    assert [each.queue for each in both(loads, HALF)] == [6, 2]


def test_sessions_that_one_has_just_opened_count_before_the_peer_says_so() -> None:
    loads = known((A, 0), (B, 0))
    loads.opened(A, 0.0)
    loads.opened(A, 0.0)
    assert [each.queue for each in both(loads, 0.0)] == [2, 0]
    assert both(loads, 60.0)[0].queue < 0.01


def test_measured_slowness_beats_claims_and_is_forgiven_with_time() -> None:
    loads = known((A, 0), (B, 0))
    loads.measured(A, 20.0, 0.0)
    for second in range(10):
        loads.heard(A, 0, second)
    slow = both(loads, 0.0)[0].slow
    assert slow > 5
    assert Pace.of(record(A, 0, 4, num_blocks=4), Costs(), Load(0, slow)).step(4) > 5 * 0.1
    assert both(loads, SLOW_HALF)[0].slow == pytest.approx(math.sqrt(slow))
    assert both(loads, 1e9)[0].slow == pytest.approx(1)


def test_what_predictions_may_be_wrong_by_is_not_held_against_a_peer() -> None:
    loads = known((A, 0))
    loads.measured(A, 1.9, 0.0)
    loads.measured(A, 0.01, 0.0)
    assert both(loads, 0.0)[0].slow == 1


def test_peers_that_are_gone_are_forgotten() -> None:
    loads = known((A, 8), (B, 8))
    loads.read([record(B, 0, 4, num_blocks=4, issued=NOW)], NOW + 1e4, 1e4)
    assert len(loads) == 1


def test_of_those_that_are_alike_the_favourite_and_any_other_are_kept_and_of_each_other_kind_as_many() -> None:
    kinds = ["x"] * 5 + ["y"] + ["x"] * 2
    idle = [1.0, 1.05, 1.0, 1.02, 1.09, 1.0, 1.5, 1.6]
    lots = [0.5, 0.1, 0.6, 0.7, 0.8, 0.9, 0.2, 0.3]
    seen = set()
    for seed in range(50):
        kept = pairs(kinds, idle, lots, alike=0.1, dice=Random(seed))
        assert len(kept) == 5
        assert {1, 5, 6, 7} < set(kept)
        seen |= set(kept)
    assert seen == set(range(8))


def test_hundreds_of_clients_with_old_records_spread_and_a_new_peer_has_its_share_within_a_minute() -> None:
    crowd = list(Crowd(peers=8, arrivals=8.0).run(seconds=200, joins=120))
    worst = [max(sessions.values()) * 8 / sessions.total() for sessions in crowd[60:120]]
    assert sum(worst) / len(worst) < 1.4
    after = [sessions[PeerId("new")] * 9 / sessions.total() for sessions in crowd[150:180]]
    assert sum(after) / len(after) > 0.5
    assert max(after) < 2.5


def test_the_same_clients_stampede_when_each_takes_what_looks_best() -> None:
    crowd = list(Crowd(peers=8, arrivals=8.0, two=False).run(seconds=120, joins=120))
    worst = [max(sessions.values()) * 8 / sessions.total() for sessions in crowd[60:120]]
    assert sum(worst) / len(worst) > 2
