"""Clipping, noise, and what is counted of it."""

import math

import pytest
import torch

from clients.federated.privacy import clipped, noised, spent

DELTA = 1e-5


def test_long_changes_are_cut_and_short_ones_left() -> None:
    assert clipped(torch.tensor([3.0, 4.0]), 1.0).norm().item() == pytest.approx(1.0)
    assert clipped(torch.tensor([0.3, 0.4]), 1.0).tolist() == pytest.approx([0.3, 0.4])


def test_noise_is_as_wide_as_asked_and_never_the_same() -> None:
    torch.manual_seed(0)
    one = noised(torch.zeros(10_000), 2.0)
    torch.manual_seed(0)
    assert not torch.equal(one, noised(torch.zeros(10_000), 2.0))
    assert one.std().item() == pytest.approx(2.0, rel=0.05)
    assert noised(torch.ones(2), 0.0).tolist() == [1.0, 1.0]


def test_a_release_costs_no_more_than_the_classic_bound_and_each_one_costs() -> None:
    noise = 20.0  # ten times the largest difference of two changes, where the classic bound holds
    one, ten = spent(noise, 1, DELTA), spent(noise, 10, DELTA)
    assert one < math.sqrt(2 * math.log(1.25 / DELTA)) / (noise / 2)
    assert one < ten < 10 * one
    assert spent(2 * noise, 10, DELTA) < ten
