"""The reasoning of audits: who stands alone, who is in all chains that differ, and how soon a liar is noticed."""

import itertools
import random

import pytest

from fault.audits import Bench, Marks, agree, audits_to_notice, liar_of, tells
from swarm.ids import PeerId

ADA, BOB, EVE = PeerId("ada"), PeerId("bob"), PeerId("eve")


def test_who_stands_alone_against_two_lies() -> None:
    found = {Bench(*values): liar_of(Bench(*values)) for values in itertools.product([False, True], repeat=3)}
    assert {bench: liar for bench, liar in found.items() if liar is not None} == {
        Bench(False, False, True): 0,
        Bench(False, True, False): 1,
        Bench(True, False, False): 2,
    }


def test_precise_peers_have_to_agree_more_closely_and_many_positions_say_more_than_one() -> None:
    assert agree(0.004, ["fp32"], ["fp32"], 1)
    assert not agree(0.02, ["fp32"], ["fp32"], 1)
    assert agree(0.02, ["fp32"], ["fp32", "bf16"], 4)
    assert agree(0.1, ["int8"], ["int8"], 16)
    assert not agree(0.18, ["int8"], ["int8"], 16), "a block that was left out"
    assert agree(0.085, ["fp32"], ["llm.int8"], 16)
    assert not agree(0.18, ["fp32"], ["llm.int8"], 16)
    assert agree(0.1, ["from-the-future"], ["int8"], 16)


def test_four_bits_are_held_against_nobody_by_other_precisions() -> None:
    assert tells({"fp32"}, {"bf16", "int8"})
    assert tells({"nf4"}, {"nf4"})
    assert not tells({"nf4"}, {"fp32"})
    assert not tells({"fp32"}, {"fp32", "int4"})
    assert not tells({"int4"}, {"nf4"})


def test_who_is_in_every_chain_that_differs_is_found() -> None:
    marks = Marks()
    assert marks.failed([ADA, EVE]) is None
    marks.passed([ADA, EVE])
    assert marks.failed([BOB, EVE]) is None
    marks.passed([BOB])
    assert marks.failed([ADA, EVE]) is None, "eleven"
    assert marks.failed([ADA, EVE]) == EVE


def test_two_that_are_always_together_are_not_told_apart() -> None:
    marks = Marks()
    assert [marks.failed([ADA, EVE]) for _ in range(5)] == [None] * 5


@pytest.mark.parametrize(("rate", "lies"), [(0.05, 1.0), (0.2, 0.25)])
def test_liars_are_noticed_as_soon_as_is_said(rate: float, lies: float) -> None:
    dice, runs = random.Random(3), 4000
    bound = audits_to_notice(rate, lies)

    def steps() -> int:
        return next(step for step in itertools.count(1) if dice.random() < rate and dice.random() < lies)

    assert sum(steps() > bound for _ in range(runs)) / runs == pytest.approx(0.01, abs=0.005)
