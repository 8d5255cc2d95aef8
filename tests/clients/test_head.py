import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from clients.head import Head
from swarm.errors import UsageError


def made(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Head]:
    """A linear layer, and the head that was made of a copy of it."""
    linear = nn.Linear(24, 40, bias=bias, dtype=dtype).requires_grad_(False)
    head = Head.of(copy.deepcopy(linear))
    head.pack()
    return linear, head


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5), (2, 90), (1, 0)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_the_linear_layer(shape: tuple[int, int], bias: bool, dtype: torch.dtype) -> None:
    linear, head = made(bias=bias, dtype=dtype)
    hidden = torch.randn(*shape, 24, dtype=dtype)
    torch.testing.assert_close(head(hidden), linear(hidden))


def test_many_threads_get_their_own_logits() -> None:
    linear, head = made()
    inputs = [torch.randn(1, 1, 24) for _ in range(200)]
    with ThreadPoolExecutor(16) as pool:
        for hidden, logits in zip(inputs, pool.map(head, inputs), strict=True):
            torch.testing.assert_close(logits, linear(hidden))


def replaced(head: Head) -> None:
    head.weight = nn.Parameter(head.weight * 2)


def stepped(head: Head) -> None:
    head.weight.mul_(2)


def merged(head: Head) -> None:
    head.weight.data += head.weight.data


def loaded(head: Head) -> None:
    head.load_state_dict({"weight": head.weight * 2})


@pytest.mark.parametrize("change", [replaced, stepped, merged, loaded])
def test_a_weight_that_changed_is_used_as_it_is(change: Callable[[Head], None]) -> None:
    linear, head = made()
    hidden = torch.randn(1, 1, 24)
    with torch.no_grad():
        change(head)
        torch.testing.assert_close(head(hidden), 2 * linear(hidden))


def test_it_learns_and_lets_gradients_pass() -> None:
    linear, head = made()
    linear.requires_grad_()
    head.requires_grad_()
    ours, theirs = torch.randn(1, 2, 24, requires_grad=True), None
    theirs = ours.detach().clone().requires_grad_()
    head(ours).square().sum().backward()
    linear(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(head.weight.grad, linear.weight.grad)


def test_it_looks_like_the_layer_it_was_made_of() -> None:
    linear, head = made(bias=True)
    assert list(head.state_dict()) == list(linear.state_dict())
    assert (head.in_features, head.out_features) == (24, 40)


def test_a_copy_works_by_itself() -> None:
    linear, head = made()
    other = copy.deepcopy(head)
    head.weight.zero_()
    hidden = torch.randn(1, 1, 24)
    torch.testing.assert_close(other(hidden), linear(hidden))


def test_what_comes_from_a_thread_in_inference_mode_can_be_written_to() -> None:
    _, head = made()
    with torch.inference_mode():
        logits = head(torch.randn(1, 1, 24))
    logits += 1
    assert not logits.is_inference()


@pytest.mark.parametrize(("precision", "loss"), [("bf16", 0.01), ("int8", 0.02), ("int4", 0.12)])
def test_a_packed_head_is_near_the_plain_one_and_the_weight_stays(precision: str, loss: float) -> None:
    linear = nn.Linear(64, 96, bias=False).requires_grad_(False)
    head = Head.of(linear)
    head.pack(precision)
    hidden = torch.randn(2, 70, 64)
    expected = linear(hidden)
    logits = head(hidden)
    assert 0 < (logits - expected).norm() / expected.norm() < loss
    assert logits.dtype == torch.float32
    assert head.weight is linear.weight


def test_a_precision_that_no_head_has_is_refused() -> None:
    with pytest.raises(UsageError, match="packed as bf16, int8, int4, not 'int2'"):
        Head.of(nn.Linear(64, 96)).pack("int2")
