import torch
from torch import Tensor

from clients.history import History
from swarm.ids import RowId

A, B = RowId(1), RowId(2)


def embed(tokens: Tensor, start: int) -> Tensor:
    """Shows both the token and its position: [n, 2]."""
    positions = torch.arange(start, start + len(tokens))
    return torch.stack([tokens, positions], dim=1).float()


def filled() -> History:
    history = History(embed)
    history.append(A, torch.tensor([10, 11, 12]))
    history.append(A, torch.tensor([13]))
    return history


def test_any_part_of_a_row_can_be_embedded_again_at_its_positions() -> None:
    history = filled()
    assert history.hidden(A, 0, 4).tolist() == [[10, 0], [11, 1], [12, 2], [13, 3]]
    assert history.hidden(A, 2, 4).tolist() == [[12, 2], [13, 3]]


def test_a_fork_goes_its_own_way() -> None:
    history = filled()
    history.fork(A, 2, B)
    history.append(B, torch.tensor([99]))
    assert history.hidden(B, 0, 3).tolist() == [[10, 0], [11, 1], [99, 2]]
    assert history.lengths == {A: 4, B: 3}


def test_raw_embeddings_are_kept_as_they_are() -> None:
    history = History(embed)
    history.append(A, torch.tensor([[0.5, 0.5]]))
    history.append(A, torch.tensor([7]))
    history.fork(A, 2, B)
    assert history.hidden(B, 0, 2).tolist() == [[0.5, 0.5], [7, 1]]


def test_what_is_appended_may_change_afterwards() -> None:
    history, tokens = History(embed), torch.tensor([1, 2])
    history.append(A, tokens)
    tokens.zero_()
    assert history.hidden(A, 0, 2)[:, 0].tolist() == [1, 2]


def test_only_kept_rows_remain() -> None:
    history = filled()
    history.fork(A, 1, B)
    history.keep({B})
    assert history.lengths == {B: 1}
