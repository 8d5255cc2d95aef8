import pytest
import torch

from swarm.rates import Rates, threads, usable_cores


def test_floor_is_the_slower_of_reading_and_computing() -> None:
    rates = Rates(1, bandwidth=10.0, flops=100.0)
    assert rates.floor(size=20.0, operations=100.0) == 2.0
    assert rates.floor(size=20.0, operations=500.0) == 5.0


def test_the_best_of_two_measurements_counts() -> None:
    assert Rates(2, 10.0, 100.0).at_best(Rates(2, 20.0, 50.0)) == Rates(2, 20.0, 100.0)


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyboardInterrupt), threads(before + 1):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1
