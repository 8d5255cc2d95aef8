import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.memory_budget import GPU_PLACES, BlockCost, blocks_that_fit, must_stream, parse_size, readable
from swarm.errors import UsageError

COST = BlockCost(weights=100_000_000, kv=1000)


def test_everything_is_hosted_where_it_fits() -> None:
    assert blocks_that_fit(100_000_000_000, COST, num_blocks=30) == 30


def test_small_machine_hosts_some_blocks_and_keeps_room_for_kv() -> None:
    assert blocks_that_fit(1_000_000_000, COST, num_blocks=30) == 7


def test_kv_that_was_asked_for_is_kept_free() -> None:
    assert blocks_that_fit(1_000_000_000, COST, num_blocks=30, kv_tokens=100_000) == 5


def test_more_blocks_than_fit_are_refused_with_a_number_that_does_fit() -> None:
    with pytest.raises(UsageError, match=r"20 blocks do not fit.*--num-blocks 9 or less"):
        blocks_that_fit(1_000_000_000, COST, num_blocks=30, wanted=20)
    assert blocks_that_fit(1_000_000_000, COST, num_blocks=30, wanted=9) == 9


def test_not_even_one_block_is_refused() -> None:
    with pytest.raises(UsageError, match="1 block does not fit"):
        blocks_that_fit(50_000_000, COST, num_blocks=30)


@given(
    memory=st.integers(1, 10**12),
    weights=st.integers(1, 10**10),
    kv=st.integers(1, 10**6),
    num_blocks=st.integers(1, 200),
    wanted=st.none() | st.integers(1, 200),
    kv_tokens=st.none() | st.integers(1, 10**6),
)
def test_blocks_that_fit_never_take_more_than_there_is(
    memory: int, weights: int, kv: int, num_blocks: int, wanted: int | None, kv_tokens: int | None
) -> None:
    try:
        blocks = blocks_that_fit(
            memory, BlockCost(weights, kv), num_blocks=num_blocks, wanted=wanted, kv_tokens=kv_tokens
        )
    except UsageError:
        return
    assert 1 <= blocks <= num_blocks
    assert blocks * (weights + (kv_tokens or 1) * kv) <= memory
    assert wanted in (None, blocks)


@pytest.mark.parametrize(("size", "text"), [(512, "512 B"), (1_500_000_000, "1.5 GB"), (2 * 10**12, "2 TB")])
def test_sizes_read_as_people_say_them(size: int, text: str) -> None:
    assert readable(size) == text


def test_blocks_are_streamed_only_when_they_do_not_all_fit() -> None:
    assert must_stream(1_000_000_000, COST, wanted=20)
    assert not must_stream(1_000_000_000, COST, wanted=9)


def test_no_room_for_one_block_beside_the_keys_of_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"110 MB is too little for 20 blocks, even one at a time"):
        must_stream(110_000_000, COST, wanted=20)


def test_blocks_that_pass_through_a_gpu_need_two_places() -> None:
    assert must_stream(250_000_000, COST, 20, at_once=GPU_PLACES)
    assert not must_stream(110_000_000, COST, 1, at_once=GPU_PLACES)
    with pytest.raises(UsageError, match=r"--max-vram 150 MB is too little for 20 blocks, even two at a time"):
        must_stream(150_000_000, COST, 20, at_once=GPU_PLACES, flag="--max-vram")


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500_000_000), ("1.5 GB", 1_500_000_000), ("6GiB", 6 << 30), ("64kb", 64_000), ("7B", 7)],
)
def test_sizes_are_written_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "500", "-1GB", "0MB", "much", "1e9B", "5 GBB", "GB"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="as in 500MB"):
        parse_size(text)
