from hypothesis import given
from hypothesis import strategies as st

from peers.leases import Leases
from peers.pages import PagePool
from swarm.ids import SessionId

A, B = SessionId(b"a" * 16), SessionId(b"b" * 16)


def test_a_promise_is_counted_once_however_often_it_is_made() -> None:
    leases = Leases(PagePool(10, 4))
    assert leases.raise_to(A, 6)
    assert leases.raise_to(A, 6)
    assert leases.raise_to(A, 3)
    assert leases.free == 4
    assert leases.free_tokens == 16


def test_what_does_not_fit_changes_nothing() -> None:
    leases = Leases(PagePool(10, 4))
    assert leases.raise_to(A, 6)
    assert not leases.raise_to(B, 5)
    assert leases.raise_to(B, 4)


def test_an_ended_promise_is_free_again() -> None:
    leases = Leases(PagePool(10, 4))
    leases.raise_to(A, 10)
    leases.end(A)
    leases.end(A)
    assert leases.free == 10


def test_lowering_never_raises() -> None:
    leases = Leases(PagePool(10, 4))
    leases.raise_to(A, 4)
    leases.lower_to(A, 8)
    leases.lower_to(B, 8)
    assert leases.free == 6
    leases.lower_to(A, 1)
    assert leases.free == 9


@given(st.lists(st.tuples(st.sampled_from(["raise", "lower", "end"]), st.integers(0, 5), st.integers(0, 12))))
def test_no_more_is_ever_promised_than_there_is(operations: list[tuple[str, int, int]]) -> None:
    leases = Leases(PagePool(10, 4))
    promised: dict[int, int] = {}
    for what, name, pages in operations:
        session = SessionId(bytes([name]) * 16)
        if what == "raise" and leases.raise_to(session, pages):
            promised[name] = max(pages, promised.get(name, 0))
        elif what == "lower" and name in promised:
            leases.lower_to(session, pages)
            promised[name] = min(pages, promised[name])
        elif what == "end":
            leases.end(session)
            promised.pop(name, None)
        assert leases.free == 10 - sum(promised.values()) >= 0
