"""Every family: a chain of spans computes what the whole model does, however rows are cut, packed and forked."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from swarm.checkpoint import Checkpoint, resolve
from swarm.ids import Span
from tests.models import FAMILIES, WINDOW, tiny_model
from tests.peers.chains import Chain, Hop, LocalModel, load

TOKENS = 3 * WINDOW + 1  # longer than the sliding windows
PERMITTED = {"atol": 2e-5, "rtol": 2e-5}  # fp32 sums in another order

Family = tuple[Checkpoint, LocalModel]
CUTS = [(0, 1), (0, 2), (0, 1, 3)]  # where spans begin


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    return resolve(str(folder), cache=tmp_path_factory.mktemp("cache")), LocalModel(folder, request.param)


def ids(seed: int, tokens: int = TOKENS) -> Tensor:
    return torch.randint(3, 128, (tokens,), generator=torch.Generator().manual_seed(seed))


def chain_of(checkpoint: Checkpoint, begins: tuple[int, ...], rows: int) -> Chain:
    edges = pairwise([*begins, checkpoint.num_blocks])
    return Chain([Hop(load(checkpoint, Span(*edge)), rows) for edge in edges])


def relative(states: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Both in units of the expected root mean square, since a random model's hidden states may be large."""
    unit = expected.pow(2).mean().sqrt()
    return states / unit, expected / unit


def assert_same(states: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(*relative(states, expected), **PERMITTED)


@pytest.mark.parametrize("begins", CUTS, ids=str)
def test_prompt_in_one_go(family: Family, begins: tuple[int, ...]) -> None:
    checkpoint, local = family
    embedded, expected = local.run(ids(0))
    assert_same(chain_of(checkpoint, begins, rows=1).step(embedded, [TOKENS]), expected)


@pytest.mark.parametrize("begins", CUTS[:2], ids=str)
def test_rows_of_different_lengths_in_chunks_and_then_token_by_token(family: Family, begins: tuple[int, ...]) -> None:
    checkpoint, local = family
    lengths = [TOKENS, TOKENS - 6, 5]
    runs = [local.run(ids(seed, length)) for seed, length in enumerate(lengths)]
    chain = chain_of(checkpoint, begins, rows=3)
    done = [0, 0, 0]
    for chunk in [[7, 10, 2], [6, 0, 0], [1, 1, 1], [1, 2, 1], *([1, 1, 1] for _ in range(TOKENS))]:
        news = [min(n, length - at) for n, length, at in zip(chunk, lengths, done, strict=True)]
        if not any(news):
            break
        spans = [slice(at, at + n) for at, n in zip(done, news, strict=True)]
        output = chain.step(torch.cat([embedded[s] for (embedded, _), s in zip(runs, spans, strict=True)]), news)
        assert_same(output, torch.cat([expected[s] for (_, expected), s in zip(runs, spans, strict=True)]))
        done = [at + n for at, n in zip(done, news, strict=True)]
    assert done == lengths


def test_forked_row_goes_its_own_way_and_leaves_the_other_alone(family: Family) -> None:
    checkpoint, local = family
    first, fork_at = ids(0), TOKENS - 7
    second = torch.cat([first[:fork_at], ids(1)[fork_at:]])
    (embedded, expected), (other_embedded, other_expected) = local.run(first), local.run(second)
    chain = chain_of(checkpoint, (0, 2), rows=1)
    chain.step(embedded[:-4], [TOKENS - 4])
    chain.fork(0, fork_at)
    assert_same(chain.step(other_embedded[fork_at:-3], [0, 4]), other_expected[fork_at:-3])
    for at in (-3, -2, -1):
        output = chain.step(torch.stack([embedded[at - 1], other_embedded[at]]), [1, 1])
        assert_same(output, torch.stack([expected[at - 1], other_expected[at]]))


def test_hops_that_use_parts_of_larger_spans(family: Family) -> None:
    checkpoint, local = family
    embedded, expected = local.run(ids(0))
    whole = load(checkpoint, Span(0, checkpoint.num_blocks))
    tail = load(checkpoint, Span(1, checkpoint.num_blocks))
    end = checkpoint.num_blocks
    parts = [(whole, Span(0, 1)), (tail, Span(1, 2)), (whole, Span(2, end - 1)), (tail, Span(end - 1, end))]
    chain = Chain([Hop(span, 1, part) for span, part in parts])
    begin = 0
    for n in (TOKENS - 5, 1, 3, 1):
        assert_same(chain.step(embedded[begin : begin + n], [n]), expected[begin : begin + n])
        begin += n


def test_windows_of_layers_are_learned_from_the_library(family: Family) -> None:
    checkpoint, _ = family
    config = checkpoint.config
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * checkpoint.num_blocks
    window = getattr(config, "sliding_window", None)
    span = load(checkpoint, Span(0, checkpoint.num_blocks))
    assert span.windows == tuple(window if kind == "sliding_attention" else None for kind in kinds)
