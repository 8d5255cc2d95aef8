"""What is reasoned over a broken chain; that it works is shown in tests/test_invariants.py."""

from fault.mend import Hole, Leg, RowGoal, segments, wire_up
from routing.chains import Hop
from swarm.ids import PeerId, RowId, SessionId, Span
from swarm.messages import Contact, Resend

CLIENT = Contact(PeerId("client"))
ROW = RowId(1)


def leg(name: str, start: int, end: int, at: int = 0) -> Leg:
    hop = Hop(Contact(PeerId(name)), Span(start, end), 0.01)
    return Leg(hop, SessionId(name.encode().ljust(16)), {ROW: at} if at else {})


A, B, C, D = leg("a", 0, 5, 9), leg("b", 5, 10, 9), leg("c", 10, 15, 8), leg("d", 15, 20, 8)


def test_dead_neighbours_become_one_hole() -> None:
    assert segments([A, B, C, D], {A.session, D.session}) == [A, Hole(Span(5, 15), A.peer, D.peer), D]


def test_holes_at_the_ends_lie_next_to_the_client() -> None:
    parts = segments([A, B, C, D], {B.session, C.session})
    assert parts == [Hole(Span(0, 5), None, B.peer), B, C, Hole(Span(15, 20), C.peer, None)]


def test_a_chain_without_survivors_is_one_hole() -> None:
    assert segments([A, B, C, D], set()) == [Hole(Span(0, 20), None, None)]


def test_the_hop_above_a_hole_sends_everything_to_the_new_hop_and_that_one_only_what_is_new_below() -> None:
    fresh = leg("x", 5, 10)
    first, new, after, last = wire_up([A, fresh, C, D], CLIENT, {ROW: RowGoal(9, 8)})
    assert first.resend == (Resend(ROW, 0, 8),)
    assert first.next == fresh.hop.contact
    assert first.next_session == fresh.session
    assert (new.prev, new.sent, new.resend) == (A.peer, {ROW: 8}, ())
    assert (after.prev, after.resend) == (fresh.peer, (Resend(ROW, 8, 8),))
    assert (last.next, last.resend) == (None, (Resend(ROW, 8, 8),))


def test_hops_that_cannot_reach_each_other_meet_at_the_client() -> None:
    first, second, *_ = wire_up([A, B, C, D], CLIENT, {}, unreachable={(A.peer, B.peer)})
    assert (first.next, first.next_session) == (CLIENT, None)
    assert second.prev == CLIENT.peer


def test_rows_that_the_client_has_dropped_are_not_sent_again() -> None:
    first, *_ = wire_up([A, B, C, D], CLIENT, {})
    assert first.resend == ()
