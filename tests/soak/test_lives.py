"""Whether a block had nobody is read off the ledger."""

import random
from itertools import islice

from swarm.ids import Span
from tests.soak.lives import LONGEST, SHORTEST, Ending, Ledger, Service, gaps, lives

ALL = Span(0, 30)


def test_block_that_nobody_serves_is_a_gap() -> None:
    services = [Service(Span(0, 15), 0.0), Service(Span(15, 30), 2.0, 5.0), Service(Span(10, 30), 6.0, 8.0)]
    assert gaps(services, ALL, 0.0, 10.0) == [(0.0, 2.0), (5.0, 6.0), (8.0, 10.0)]
    assert gaps(services, ALL, 2.0, 5.0) == []


def test_gaps_that_follow_each_other_are_one() -> None:
    services = [Service(Span(0, 15), 1.0, 4.0), Service(Span(0, 15), 3.0, 6.0)]
    assert gaps(services, ALL, 0.0, 7.0) == [(0.0, 7.0)]


def test_ledger_knows_who_has_ended() -> None:
    ledger = Ledger()
    number = ledger.begin(ALL, 1.0)
    assert ledger.gaps(ALL, 1.0, 9.0) == []
    ledger.end(number, 3.0)
    assert ledger.gaps(ALL, 1.0, 9.0) == [(3.0, 9.0)]


def test_lives_end_in_every_way() -> None:
    drawn = list(islice(lives(random.Random(1)), 100))
    assert {life.ending for life in drawn} == set(Ending)
    assert all(SHORTEST <= life.seconds <= LONGEST for life in drawn)
