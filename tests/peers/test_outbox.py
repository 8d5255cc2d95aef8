import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peers.kv import PagedRows
from peers.outbox import Outbox
from peers.pages import PagePool
from swarm.ids import RowId, SessionId

WIDTH = 3
A, B, C = (SessionId(letter * 16) for letter in (b"a", b"b", b"c"))
R, S, T = RowId(0), RowId(1), RowId(2)


def outbox(pages: int = 8, page_size: int = 4) -> tuple[Outbox, PagePool]:
    pool = PagePool(pages, page_size)
    return Outbox(PagedRows(pool, WIDTH, torch.float32)), pool


def states(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_what_was_appended_is_read_back_from_anywhere() -> None:
    box, _ = outbox()
    outputs = states(10)
    box.append(A, R, outputs[:3])
    box.append(A, R, outputs[3:])
    assert box.length(A, R) == 10
    assert torch.equal(box.read(A, R, 0, 10), outputs)
    assert torch.equal(box.read(A, R, 4, 7), outputs[4:7])


def test_a_fork_begins_with_what_its_source_had_and_goes_its_own_way() -> None:
    box, _ = outbox()
    outputs = states(6)
    box.append(A, R, outputs)
    box.fork(A, R, 5, S)
    box.append(A, S, states(2, seed=1))
    box.append(A, R, states(2, seed=2))
    assert torch.equal(box.read(A, S, 0, 7), torch.cat([outputs[:5], states(2, seed=1)]))
    assert torch.equal(box.read(A, R, 0, 8), torch.cat([outputs, states(2, seed=2)]))


def test_under_pressure_the_least_recently_used_session_loses_its_outbox_as_a_whole() -> None:
    box, _ = outbox(pages=4)
    box.append(A, R, states(4))
    box.append(B, R, states(8))
    box.append(A, S, states(4))  # A is now used more recently than B
    box.append(C, R, states(4))
    assert box.keeps(A)
    assert not box.keeps(B)
    assert box.keeps(C)
    assert box.dropped == 1
    assert torch.equal(box.read(A, R, 0, 4), states(4))


def test_a_dropped_outbox_stays_dropped() -> None:
    box, pool = outbox(pages=1)
    box.append(A, R, states(4))
    box.append(B, R, states(4))
    box.forget(B)
    box.append(A, S, states(2))
    assert not box.keeps(A)
    assert box.length(A, S) == 0
    assert pool.free == 1


def test_a_session_larger_than_the_whole_outbox_loses_its_own_after_the_others() -> None:
    box, pool = outbox(pages=2)
    box.append(B, R, states(4))
    box.append(A, R, states(100))
    assert not box.keeps(A)
    assert not box.keeps(B)
    assert pool.free == 2
    box.append(C, R, states(8))
    assert box.keeps(C)


def test_a_fork_when_all_is_full_makes_room_too() -> None:
    box, _ = outbox(pages=2)
    box.append(B, R, states(4))
    box.append(A, R, states(2))
    box.fork(A, R, 1, S)
    assert not box.keeps(B)
    assert torch.equal(box.read(A, S, 0, 1), states(2)[:1])


def test_rows_and_sessions_that_are_unknown_are_forgotten_without_ado() -> None:
    box, _ = outbox()
    box.forget(A)
    box.forget_row(A, R)
    box.fork(A, R, 0, S)
    assert box.keeps(A)
    assert box.length(A, S) == 0


operations = st.lists(
    st.tuples(
        st.sampled_from(["append", "fork", "drop", "forget"]),
        st.sampled_from([A, B, C]),
        st.sampled_from([R, S, T]),
        st.sampled_from([R, S, T]),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(operations)
def test_what_is_kept_is_whole_and_right_and_no_page_leaks(
    operations: list[tuple[str, SessionId, RowId, RowId, int]],
) -> None:
    box, pool = outbox(pages=6)
    model: dict[SessionId, dict[RowId, Tensor]] = {}
    for seed, (what, session, row, other, n) in enumerate(operations):
        rows = model.setdefault(session, {})
        if what == "append" and n:
            box.append(session, row, states(n, seed))
            rows[row] = torch.cat([rows.get(row, torch.empty(0, WIDTH)), states(n, seed)])
        elif what == "fork" and row in rows and other not in rows:
            at = min(n, len(rows[row]))
            box.fork(session, row, at, other)
            rows[other] = rows[row][:at]
        elif what == "drop":
            box.forget_row(session, row)
            rows.pop(row, None)
        elif what == "forget":
            box.forget(session)
            del model[session]
        for kept in (s for s in model if box.keeps(s)):
            for name, expected in model[kept].items():
                assert box.length(kept, name) == len(expected)
                if len(expected):
                    assert torch.equal(box.read(kept, name, 0, len(expected)), expected)
    for session in (A, B, C):
        box.forget(session)
    assert pool.free == 6
