import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.memory_budget import BlockCost, plan_memory, readable
from swarm.errors import UsageError

COST = BlockCost(weights=100_000_000, kv=1000)


def test_everything_is_hosted_where_it_fits() -> None:
    assert plan_memory(100_000_000_000, COST, num_blocks=30).blocks == 30


def test_small_machine_hosts_some_blocks_and_keeps_room_for_kv() -> None:
    plan = plan_memory(1_000_000_000, COST, num_blocks=30)
    assert plan.blocks == 7
    assert plan.kv_tokens * plan.blocks * COST.kv <= 300_000_000


def test_more_blocks_than_fit_are_refused_with_a_number_that_does_fit() -> None:
    with pytest.raises(UsageError, match=r"20 blocks do not fit.*--num-blocks 9 or less"):
        plan_memory(1_000_000_000, COST, num_blocks=30, wanted=20)
    assert plan_memory(1_000_000_000, COST, num_blocks=30, wanted=9).blocks == 9


def test_not_even_one_block_is_refused() -> None:
    with pytest.raises(UsageError, match="1 block does not fit"):
        plan_memory(50_000_000, COST, num_blocks=30)


@given(
    memory=st.integers(1, 10**12),
    weights=st.integers(1, 10**10),
    kv=st.integers(1, 10**6),
    num_blocks=st.integers(1, 200),
    wanted=st.none() | st.integers(1, 200),
    kv_tokens=st.none() | st.integers(1, 10**6),
)
def test_a_plan_never_takes_more_than_there_is(
    memory: int, weights: int, kv: int, num_blocks: int, wanted: int | None, kv_tokens: int | None
) -> None:
    try:
        plan = plan_memory(memory, BlockCost(weights, kv), num_blocks=num_blocks, wanted=wanted, kv_tokens=kv_tokens)
    except UsageError:
        return
    assert 1 <= plan.blocks <= num_blocks
    assert plan.kv_tokens >= 1
    assert plan.blocks * (weights + plan.kv_tokens * kv) <= memory
    assert wanted in (None, plan.blocks)
    assert kv_tokens in (None, plan.kv_tokens)


@pytest.mark.parametrize(("size", "text"), [(512, "512 B"), (1_500_000_000, "1.5 GB"), (2 * 10**12, "2 TB")])
def test_sizes_read_as_people_say_them(size: int, text: str) -> None:
    assert readable(size) == text
