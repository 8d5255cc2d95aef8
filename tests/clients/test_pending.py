import pytest
import torch

from clients.pending import Pending, Wanted
from swarm.codecs import encode
from swarm.errors import WireError
from swarm.ids import RowId, SessionId
from swarm.messages import Out, StepRow

A, B = RowId(1), RowId(2)
SESSION = SessionId(b"s" * 16)


def out(row: RowId, at: int, values: list[float]) -> Out:
    body = encode(torch.tensor(values)[:, None].repeat(1, 4), "fp32")
    return Out(SESSION, (StepRow(row, at, len(values), at),), "fp32", body)


def pending(**wanted: tuple[int, int]) -> Pending:
    rows = {"a": A, "b": B}
    return Pending({rows[name]: Wanted(*bounds) for name, bounds in wanted.items()}, 4, torch.float32)


def test_outputs_come_in_pieces_in_any_order() -> None:
    waiting = pending(a=(3, 6), b=(8, 9))
    assert waiting.take(out(A, 5, [5.0]))
    assert waiting.take(out(B, 8, [8.0]))
    assert not waiting.done
    assert waiting.want(A) == 3
    assert waiting.take(out(A, 3, [3.0, 4.0]))
    assert waiting.done
    assert waiting.result()[:, 0].tolist() == [3.0, 4.0, 5.0, 8.0]


def test_what_came_once_is_not_taken_again() -> None:
    waiting = pending(a=(3, 5))
    assert waiting.take(out(A, 3, [3.0]))
    assert not waiting.take(out(A, 3, [99.0]))
    assert waiting.take(out(A, 3, [99.0, 4.0])), "the second of the two is new"
    assert waiting.result()[:, 0].tolist() == [3.0, 4.0]
    assert not waiting.take(out(A, 1, [1.0, 2.0])), "an earlier step's answer, sent again"
    assert not waiting.take(out(B, 0, [0.0])), "a row that nobody waits for"


def test_what_can_be_no_answer_is_an_error() -> None:
    waiting = pending(a=(3, 5))
    with pytest.raises(WireError, match="not finite"):
        waiting.take(out(A, 3, [float("nan")]))
    with pytest.raises(WireError, match="positions up to 6"):
        waiting.take(out(A, 3, [3.0, 4.0, 5.0]))
    with pytest.raises(WireError, match="announced"):
        waiting.take(Out(SESSION, (StepRow(A, 3, 2, 3),), "fp32", encode(torch.zeros(1, 4), "fp32")))
    assert waiting.want(A) == 3


def test_a_step_that_wants_nothing_is_done_at_once() -> None:
    assert pending().done
    assert pending().result().shape == (0, 4)
