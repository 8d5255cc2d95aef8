"""From what clients measure and peers tell to what planning knows."""

from dataclasses import replace

import pytest

from routing.distances import NEAR, UNKNOWN, known_links
from swarm.ids import PeerId
from tests.routing.records import CLIENT, record

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def test_own_measurements_count_both_ways() -> None:
    links = known_links(CLIENT, {A: 0.2}, {}, [])
    assert links.between(CLIENT, A).delay == links.between(A, CLIENT).delay == 0.2
    assert links.between(CLIENT, B) == UNKNOWN


def test_next_door_nobody_is_preferred() -> None:
    links = known_links(CLIENT, {A: 0.001, B: 0.009}, {}, [])
    assert links.between(CLIENT, A) == links.between(CLIENT, B)
    assert links.between(CLIENT, A).delay == NEAR


def test_silence_makes_far_and_never_near() -> None:
    links = known_links(CLIENT, {}, {A: 0.001, B: 0.5}, [])
    assert (links.between(CLIENT, A), links.between(CLIENT, B).delay) == (UNKNOWN, 0.5)


def test_what_peers_tell_of_each_other_beats_an_estimate() -> None:
    told = replace(record("a", 0, 2, num_blocks=4), near=((B, 0.015), (C, 0.0)))
    links = known_links(CLIENT, {A: 0.1, B: 0.12}, {}, [told])
    assert links.between(A, B).delay == links.between(B, A).delay == pytest.approx(0.015)
    assert links.between(A, C).delay == NEAR
    assert known_links(CLIENT, {A: 0.1, B: 0.12}, {}, []).between(A, B).delay == pytest.approx(0.12)
