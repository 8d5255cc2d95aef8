import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from clients.gathering import MAX_ROWS, Gathering

LIMIT = 30.0


class Doubling:
    """Doubles rows, notes how many came in each product, and can be held up."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, rows: Tensor) -> Tensor:
        self.sizes.append(len(rows))
        self.began.set()
        assert self.go_on.wait(LIMIT)
        if bool((rows < 0).any()):
            raise ValueError("negative")
        return 2 * rows


def together(function: Doubling, inputs: list[Tensor]) -> list[Future[Tensor]]:
    """The first input is being computed when the others come."""
    gathering = Gathering()
    function.go_on.clear()
    with ThreadPoolExecutor(len(inputs)) as pool:
        futures = [pool.submit(gathering.call, function, inputs[0])]
        assert function.began.wait(LIMIT)
        futures += [pool.submit(gathering.call, function, rows) for rows in inputs[1:]]
        until(lambda: gathering.waiting == len(inputs) - 1)
        function.go_on.set()
    return futures


def until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not met():
        assert time.monotonic() < end
        time.sleep(0)


def test_who_comes_while_one_computes_shares_the_next_product() -> None:
    function = Doubling()
    inputs = [torch.full((n, 3), float(n)) for n in (1, 2, 1, 4)]
    results = [future.result() for future in together(function, inputs)]
    assert function.sizes == [1, 7]
    assert all(torch.equal(result, 2 * rows) for result, rows in zip(results, inputs, strict=True))


def test_a_product_has_a_limit_and_nobody_is_left_behind() -> None:
    function = Doubling()
    futures = together(function, [torch.ones(MAX_ROWS // 2, 1) for _ in range(4)])
    assert [len(future.result()) for future in futures] == [MAX_ROWS // 2] * 4
    assert function.sizes == [MAX_ROWS // 2, MAX_ROWS, MAX_ROWS // 2]


def test_more_rows_than_the_limit_go_alone_at_once() -> None:
    function = Doubling()
    assert len(Gathering().call(function, torch.ones(MAX_ROWS + 1, 1))) == MAX_ROWS + 1


def test_an_error_reaches_all_it_concerns_and_then_all_goes_on() -> None:
    function = Doubling()
    first, *others = together(function, [torch.ones(1, 1), -torch.ones(1, 1), torch.ones(1, 1)])
    assert first.result().item() == 2.0
    for future in others:
        with pytest.raises(ValueError, match="negative"):
            future.result()


def test_after_an_error_the_next_call_is_served() -> None:
    function, gathering = Doubling(), Gathering()
    with pytest.raises(ValueError, match="negative"):
        gathering.call(function, -torch.ones(1, 1))
    assert gathering.call(function, torch.ones(1, 1)).item() == 2.0


def test_a_copy_shares_nothing() -> None:
    gathering = Gathering()

    def copied(rows: Tensor) -> Tensor:
        return copy.deepcopy(gathering).call(lambda inner: 2 * inner, rows)  # the original is busy now

    assert gathering.call(copied, torch.ones(1, 1)).item() == 2.0
