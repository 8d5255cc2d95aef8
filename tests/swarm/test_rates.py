import pytest
import torch

from swarm.rates import Rates, measure_rates, threads, usable_cores


def test_floor_is_the_slower_of_reading_and_computing() -> None:
    rates = Rates(1, bandwidth=10.0, flops=100.0, bf16=200.0, int8=400.0)
    assert rates.floor(20.0, {"fp32": 100.0}) == 2.0
    assert rates.floor(20.0, {"fp32": 500.0}) == 5.0
    assert rates.floor(0.0, {"fp32": 100.0, "int4": 400.0, "bf16": 200.0}) == 3.0


def test_weights_may_be_multiplied_in_whatever_is_fastest() -> None:
    slow = Rates(1, bandwidth=10.0, flops=100.0, bf16=50.0, int8=25.0)
    assert {slow.operations(precision) for precision in ("fp32", "bf16", "fp16", "int8", "int4")} == {100.0}


def test_a_machine_is_measured() -> None:
    rates = measure_rates(1)
    assert min(rates.bandwidth, rates.flops, rates.bf16, rates.int8) > 0


def test_the_best_of_two_measurements_counts() -> None:
    assert Rates(2, 10.0, 100.0, 1.0, 4.0).at_best(Rates(2, 20.0, 50.0, 2.0, 3.0)) == Rates(2, 20.0, 100.0, 2.0, 4.0)


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
