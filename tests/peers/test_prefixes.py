import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peers.pages import PagePool, PageTable
from peers.prefixes import Prefixes, RowKeys, SharedPage, root_key, token_digests
from swarm.ids import Digest, PeerId, RowId, Span
from swarm.messages import KEY_BYTES, PageKeys

PAGE, ROW = 4, RowId(0)
ROOT = root_key(Digest("m" * 64), Span(0, 2), "fp32")


def states(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, 3, generator=torch.Generator().manual_seed(seed))


def keys_of(hidden: Tensor, *cuts: int, root: bytes = ROOT) -> list[bytes]:
    """Of a row whose hidden states come in parts."""
    row = RowKeys(root, PAGE)
    at = 0
    for part in torch.tensor_split(hidden, cuts):
        row.extend(at, token_digests(part))
        at += len(part)
    return list(row.pages(0))


def test_a_key_names_all_that_came_before_its_end() -> None:
    hidden = states(14)
    keys = keys_of(hidden)
    assert len(keys) == 3
    assert keys_of(hidden, 1, 5, 6) == keys
    assert keys_of(hidden[:11]) == keys[:2]
    assert keys_of(hidden[4:])[0] != keys[1], "the same page after something else is another one"
    other = hidden.clone()
    other[0, 0] += 1
    assert not set(keys_of(other)) & set(keys)


def test_other_models_blocks_and_codecs_have_other_keys() -> None:
    roots = {
        ROOT,
        root_key(Digest("n" * 64), Span(0, 2), "fp32"),
        root_key(Digest("m" * 64), Span(0, 1), "fp32"),
        root_key(Digest("m" * 64), Span(0, 2), "bf16"),
    }
    assert len({keys_of(states(4), root=root)[0] for root in roots}) == 4


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_a_fork_goes_on_from_where_it_was_cut(tokens: int, at: int, more: int) -> None:
    row, at = RowKeys(ROOT, PAGE), min(at, tokens)
    row.extend(0, token_digests(states(tokens)))
    fork = row.fork(at)
    fork.extend(at, token_digests(states(more, seed=1)))
    assert list(fork.pages(0)) == keys_of(torch.cat([states(tokens)[:at], states(more, seed=1)]))
    assert list(row.pages(0)) == keys_of(states(tokens)), "its source is as it was"


def test_pages_that_a_previous_hop_names_are_told_apart_by_its_identity() -> None:
    named = [bytes([n]) * KEY_BYTES for n in range(3)]
    rows = [RowKeys(ROOT, PAGE) for _ in range(3)]
    for row, sender in zip(rows, ("honest", "honest", "liar"), strict=True):
        row.name(PeerId(sender), PageKeys(ROW, 0, tuple(named)), 0, 3 * PAGE)
    honest, again, liar = (list(row.pages(0)) for row in rows)
    assert honest == again
    assert len(honest) == 3
    assert not set(liar) & set(honest)
    assert not set(named) & set(honest)


def test_pages_are_known_up_to_the_first_that_nobody_named() -> None:
    row = RowKeys(ROOT, PAGE)
    row.name(PeerId("hop"), PageKeys(ROW, 0, (b"0" * KEY_BYTES,)), 0, PAGE)
    row.name(PeerId("hop"), PageKeys(ROW, 2, (b"2" * KEY_BYTES,)), PAGE, 2 * PAGE)
    row.extend(3 * PAGE, token_digests(states(PAGE)))
    assert [len(row.pages(first)) for first in range(4)] == [1, 0, 1, 0]


def test_a_name_counts_only_for_what_the_frame_brings() -> None:
    row = RowKeys(ROOT, PAGE)
    row.name(PeerId("hop"), PageKeys(ROW, 0, (b"k" * KEY_BYTES,) * 9), PAGE + 1, 2 * PAGE)
    assert [len(row.pages(first)) for first in range(5)] == [0, 2, 1, 0, 0]


def test_reduced_precision_is_told_apart_bit_by_bit() -> None:
    coarse = states(4).to(torch.bfloat16)
    assert keys_of(coarse) == keys_of(coarse.clone())
    assert keys_of(coarse) != keys_of(coarse.float())


def test_the_longest_known_beginning_is_found() -> None:
    kv, outbox, keys = PagePool(8, PAGE), PagePool(8, PAGE), keys_of(states(12))
    prefixes = Prefixes(kv, outbox)
    rows = [PageTable(kv), PageTable(outbox)]
    for row in rows:
        row.extend(12)
    for index in (0, 2):
        prefixes.add(keys[index], SharedPage(rows[0].pages[index], rows[1].pages[index]))
    assert prefixes.find(keys) == [SharedPage(0, 0)]
    prefixes.add(keys[1], SharedPage(1, 1))
    assert prefixes.find(keys) == [SharedPage(n, n) for n in range(3)]
    assert prefixes.find([*keys[:2], keys_of(states(4))[0]]) == [SharedPage(0, 0), SharedPage(1, 1)]


def test_when_one_half_of_a_page_goes_all_of_it_goes() -> None:
    kv, outbox, key = PagePool(2, PAGE), PagePool(1, PAGE), keys_of(states(4))[0]
    prefixes = Prefixes(kv, outbox)
    rows = [PageTable(kv), PageTable(outbox)]
    for row in rows:
        row.extend(4)
    prefixes.add(key, SharedPage(rows[0].pages[0], rows[1].pages[0]))
    for row in rows:
        row.release()
    PageTable(outbox).extend(1)
    assert prefixes.find([key]) == []
    assert len(prefixes) == 0
    assert len(kv.find_run(2)) == 2, "nothing is remembered of it"
