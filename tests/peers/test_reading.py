"""Frames that take long to read wait for their turn; those of others don't."""

from peers.reading import Reading
from swarm.ids import PeerId

A, B = PeerId("a"), PeerId("b")


def test_frames_are_read_at_once_while_that_takes_no_time() -> None:
    reading = Reading(100)
    for _ in range(1000):
        assert reading.may(A)
        reading.spent(A, 1e-7)
    assert not reading


def test_who_takes_long_waits_and_nobody_else() -> None:
    reading = Reading(100)
    reading.spent(A, 1.0)
    assert not reading.may(A)
    assert reading.may(B)


def test_what_waits_is_read_in_order_a_little_in_every_turn() -> None:
    reading, read = Reading(100), []
    reading.spent(A, 0.02)
    for number in range(6):
        reading.put(A, bytes([number]))
    turns = 0
    while reading:
        turns += 1
        for peer, frame in reading.turn(0.01):
            read.append(frame[0])
            reading.spent(peer, 0.006)
    assert read == [0, 1, 2, 3, 4, 5]
    assert 3 <= turns <= 6
    assert reading.may(B)


def test_later_frames_never_overtake_what_waits() -> None:
    reading = Reading(100)
    reading.put(A, b"first")
    assert not reading.may(A)


def test_who_took_very_long_pays_for_it_in_the_turns_that_follow() -> None:
    reading = Reading(100)
    reading.spent(A, 0.1)
    reading.put(A, b"x")
    turns = 0
    while reading:
        list(reading.turn(0.01))
        turns += 1
    assert 9 <= turns <= 10


def test_what_goes_beyond_the_bound_is_lost() -> None:
    reading = Reading(10)
    assert reading.put(A, bytes(10))
    assert not reading.put(A, b"x")
    assert reading.put(B, b"x")
    reading.gone(A)
    assert reading.put(A, b"x")
