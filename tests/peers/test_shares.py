"""Whose room is taken back for whom."""

from hypothesis import given
from hypothesis import strategies as st

from peers.shares import IDLE, MOST_SHARES, Held, take_back
from swarm.ids import PeerId, SessionId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
PAGES = 100


def held(number: int, owner: PeerId, promised: int, used: int = 0, idle: float = 0.0) -> Held:
    return Held(SessionId(bytes([number]) * 16), owner, promised, used, idle)


def test_who_holds_all_and_uses_none_of_it_gives_way() -> None:
    hoard = held(1, A, 100)
    assert take_back([hoard], B, 30, 30, PAGES) == [(hoard, 70)]


def test_nobody_gets_more_than_an_equal_share_this_way() -> None:
    assert take_back([held(1, A, 100)], B, 51, 51, PAGES) == ()
    assert take_back([held(1, A, 60), held(2, B, 40)], B, 11, 11, PAGES) == ()
    assert take_back([held(1, A, 60), held(2, B, 30)], B, 20, 10, PAGES) != ()
    assert take_back([held(1, A, 60), held(2, B, 30)], B, 21, 10, PAGES) == ()
    assert take_back([held(1, A, 60), held(2, B, 40)], C, 33, 33, PAGES) != ()


def test_nobody_is_left_with_less_than_an_equal_share() -> None:
    one, other = held(1, A, 50), held(2, B, 50)
    assert take_back([one, other], C, 33, 33, PAGES) == [(one, 33), (other, 34)]


def test_however_many_names_come_a_share_is_an_eighth_at_least() -> None:
    modest = held(1, A, PAGES // MOST_SHARES)
    names = [held(n + 2, PeerId(f"name{n}"), 4) for n in range(20)]
    assert take_back([modest, *names], B, 4, 4, PAGES) == ()
    assert take_back([held(1, A, PAGES // MOST_SHARES + 4), *names], B, 4, 4, PAGES) != ()


def test_what_is_used_stays_with_who_uses_it() -> None:
    assert take_back([held(1, A, 100, used=100)], B, 30, 30, PAGES) == ()


def test_sessions_that_rest_have_to_go_the_oldest_first() -> None:
    young, old = held(1, A, 50, used=50, idle=IDLE), held(2, A, 50, used=50, idle=2 * IDLE)
    assert take_back([young, old], B, 30, 30, PAGES) == [(old, 0)]


def test_sessions_that_rest_within_an_equal_share_stay() -> None:
    modest, busy = held(1, A, 33, used=33, idle=2 * IDLE), held(2, B, 67, used=67)
    assert take_back([modest, busy], C, 20, 20, PAGES) == ()


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 20), st.integers(0, 20), st.floats(0, 20))),
    st.integers(1, 100),
)
def test_enough_becomes_free_or_nothing_changes(drawn: list[tuple[PeerId, int, int, float]], more: int) -> None:
    sessions = [held(n % 256, o, p, min(p, u), i) for n, (o, p, u, i) in enumerate(drawn[:12])]
    free = PAGES * 3 - sum(each.promised for each in sessions)
    taken = take_back(sessions, A, more, more - free, PAGES * 3)
    assert not taken or sum(each.promised - keep for each, keep in taken) >= more - free
    assert all(keep == 0 or keep >= each.used for each, keep in taken)
