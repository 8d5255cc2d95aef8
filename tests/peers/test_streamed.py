"""Spans that pass through a window compute what spans in memory compute, to the last bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from peers.packed_files import PackedFiles
from peers.pages import PageTable, RowSlice
from peers.quantized import Packing
from peers.span import BlockSpan
from swarm.checkpoint import resolve
from swarm.errors import ModelError, UsageError
from swarm.ids import Span
from swarm.mapping import LETS_GO
from tests.memory import resident
from tests.models import tiny_model
from tests.peers.ring import Model

ALL = Span(0, 4)
ONE_BLOCK = 190_000  # bytes: a block of the tiny Llama in fp32, and no two
ROOMS = {"none": ONE_BLOCK, "bf16": 100_000, "int8": 60_000, "int4": 40_000}


def load(model: Model, cache: Path, precision: str = "none", room: int | None = None, blocks: Span = ALL) -> BlockSpan:
    return BlockSpan.load(
        model.checkpoint,
        blocks,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kv_tokens=256,
        packing=None if precision == "none" and room is None else Packing(precision, cache, room),
    )


def outputs(span: BlockSpan, hidden: Tensor, layers: slice | None = None) -> Tensor:
    """Of a prompt, and of one token after it."""
    table, n = PageTable(span.pool), len(hidden) - 1
    results = []
    for at, tokens in ((0, n), (n, 1)):
        table.extend(tokens)
        results.append(span.forward(hidden[at : at + tokens], [RowSlice(table, at, tokens)], layers))
    table.release()
    return torch.cat(results)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("precision", ROOMS)
def test_a_streamed_span_is_equal_to_the_last_bit_and_so_is_its_second_start(
    model: Model, tmp_path: Path, precision: str
) -> None:
    hidden = model.row(20)
    expected = outputs(load(model, tmp_path / "other", precision), hidden)
    for _ in range(2):
        span = load(model, tmp_path, precision, ROOMS[precision])
        assert span.window is not None
        assert span.window.count == 4
        for _ in range(2):
            assert torch.equal(outputs(span, hidden), expected)


@pytest.mark.parametrize(
    ("family", "room"), [("mixtral", 400_000), ("gpt_oss", 500_000), ("gpt_neox", 150_000), ("gemma2", 250_000)]
)
def test_any_family_can_be_streamed(tmp_path: Path, family: str, room: int) -> None:
    folder = tiny_model(family, tmp_path / family)
    model = Model(resolve(str(folder), cache=tmp_path / "cache"), torch.nn.Identity())
    blocks, hidden = Span(1, model.checkpoint.num_blocks), model.row(9)
    streamed = load(model, tmp_path, room=room, blocks=blocks)
    assert streamed.window is not None
    assert streamed.window.count > 0
    assert torch.equal(outputs(streamed, hidden), outputs(load(model, tmp_path, blocks=blocks), hidden))


def test_a_hop_takes_a_part_of_a_streamed_span(model: Model, tmp_path: Path) -> None:
    hidden, part = model.row(5), slice(1, 3)
    streamed = load(model, tmp_path, room=2 * ONE_BLOCK)
    assert torch.equal(outputs(streamed, hidden, part), outputs(load(model, tmp_path), hidden, part))


@pytest.mark.skipif(not LETS_GO, reason="only Linux lets go of mapped pages at once")
def test_no_block_that_passes_is_in_memory_between_steps(model: Model, tmp_path: Path) -> None:
    span = load(model, tmp_path, room=ONE_BLOCK)
    outputs(span, model.row(5))
    files = list(tmp_path.glob("packed/**/*.packed"))
    assert len(files) == 8  # of each block, as the library's layer has it and as it is computed with
    assert sum(resident(file) for file in files) == 0


def test_a_damaged_file_is_written_again(model: Model, tmp_path: Path) -> None:
    hidden = model.row(7)
    expected = outputs(load(model, tmp_path, room=ONE_BLOCK), hidden)
    for path in tmp_path.glob("packed/**/2.packed"):
        path.write_bytes(path.read_bytes()[:-64] + b"\1" * 64)
    assert torch.equal(outputs(load(model, tmp_path, room=ONE_BLOCK), hidden), expected)


def test_files_that_are_right_are_left_as_they_are(model: Model, tmp_path: Path) -> None:
    times = []
    for _ in range(2):
        load(model, tmp_path, room=ONE_BLOCK)
        times.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("packed/**/*.packed")})
    assert times[0] == times[1]


def test_room_for_not_even_one_block_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1000 are left for weights: give a larger --max-memory"):
        load(model, tmp_path, room=1000)


def test_a_disk_that_takes_nothing_is_said(model: Model, tmp_path: Path) -> None:
    (tmp_path / "packed").write_text("a file where a folder should be")
    with pytest.raises(ModelError, match=r"can't be written to .* make room there"):
        load(model, tmp_path, room=ONE_BLOCK)


def test_a_block_is_in_the_file_that_its_precision_names(model: Model, tmp_path: Path) -> None:
    load(model, tmp_path, "int8", ROOMS["int8"])
    assert PackedFiles(tmp_path, model.checkpoint.digest, "int8").read(3) is not None
