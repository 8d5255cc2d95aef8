"""How changes are combined: what counts how much, and what a liar can do."""

import pytest
import torch

from clients.federated.rules import RULES, SERVERS, Change, combined, slots_of, stepped


def changes(*values: float, tokens: int = 100) -> list[Change]:
    return [Change(torch.tensor([value, -value]), tokens) for value in values]


def test_a_mean_weighs_by_tokens() -> None:
    given = [Change(torch.tensor([1.0]), 100), Change(torch.tensor([4.0]), 200)]
    assert combined("mean", given).item() == pytest.approx(3.0)


def test_nobody_counts_for_much_more_than_others_whatever_they_claim() -> None:
    given = [*(Change(torch.tensor([0.0]), 100) for _ in range(4)), Change(torch.tensor([6.0]), 1 << 40)]
    assert combined("mean", given).item() == pytest.approx(2.0)  # twice one of six


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_one_of_five_moves_a_robust_rule_no_further_than_the_others_are_apart(rule: str) -> None:
    for lie in (-1e6, 1e6):
        assert 1.0 <= combined(rule, changes(1.0, 1.1, 1.2, 1.3, lie))[0].item() <= 1.3


@pytest.mark.parametrize("rule", RULES)
def test_equal_changes_are_their_own_combination(rule: str) -> None:
    assert combined(rule, changes(0.5, 0.5, 0.5)).tolist() == [0.5, -0.5]
    assert combined(rule, changes(0.25)).tolist() == [0.25, -0.25]


def test_a_median_of_two_lies_between_them() -> None:
    assert combined("median", changes(1.0, 2.0)).tolist() == [1.5, -1.5]


@pytest.mark.parametrize("server", SERVERS)
def test_servers_go_where_changes_point_and_keep_their_slots(server: str) -> None:
    weights = torch.zeros(2)
    slots = [torch.zeros(2) for _ in range(slots_of(server))]
    for _ in range(3):
        weights, kept = stepped(server, 0.1, weights, slots, torch.tensor([1.0, -2.0], dtype=torch.float64))
        slots = list(kept)
    assert len(slots) == slots_of(server)
    assert weights.dtype == torch.float32
    assert weights[0] > 0 > weights[1]


def test_averaging_at_rate_one_is_averaging() -> None:
    weights, _ = stepped("avg", 1.0, torch.tensor([2.0]), [], torch.tensor([0.5], dtype=torch.float64))
    assert weights.tolist() == [2.5]


def test_momentum_goes_on_after_changes_end() -> None:
    weights, slots = stepped("avgm", 1.0, torch.zeros(1), [torch.zeros(1)], torch.ones(1, dtype=torch.float64))
    weights, _ = stepped("avgm", 1.0, weights, slots, torch.zeros(1, dtype=torch.float64))
    assert weights.item() == pytest.approx(1.9)
