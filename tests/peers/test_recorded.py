"""Steps that are recorded and played again give what the blocks give. Here they are played by computing them again, in
the same memory, as a GPU does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peers.batch import PagedBatch
from peers.pages import PageTable, RowSlice
from peers.recorded import Record, Recordings, on_gpu
from peers.span import BlockSpan
from swarm.checkpoint import resolve
from swarm.ids import Span
from tests.models import tiny_model
from tests.peers.chains import fused_blocks, load, one_by_one

LAYERS = 4


class Recorder:
    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        work()  # as for warming up

        def play() -> None:
            self.played += 1
            work()

        return play


def span_of(folder: Path, family: str = "llama", **changes: Any) -> BlockSpan:
    return load(resolve(str(tiny_model(family, folder / "model", **changes)), cache=folder), Span(0, LAYERS))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


class Rows:
    """They grow by a token each in every step."""

    def __init__(self, span: BlockSpan, lengths: list[int]) -> None:
        self._span = span
        self.tables = [PageTable(span.pool) for _ in lengths]
        for table, length in zip(self.tables, lengths, strict=True):
            table.extend(length)
            span.forward(torch.randn(length, span.hidden_size), [RowSlice(table, 0, length)])

    def step(self, which: slice = slice(None)) -> PagedBatch:
        for table in self.tables[which]:
            table.extend(1)
        slices = [RowSlice(table, table.length - 1, 1) for table in self.tables[which]]
        return PagedBatch(self._span.cache, slices, list(self._span.windows))

    def again(self, which: slice = slice(None)) -> PagedBatch:
        for table in self.tables[which]:
            table.crop(table.length - 1)
        return self.step(which)


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("qwen3", {}), ("mistral", {"sliding_window": 8})])
@torch.inference_mode()
def test_played_steps_give_what_the_blocks_give(
    tmp_path: Path, recorder: Recorder, family: str, changes: dict[str, Any]
) -> None:
    span = span_of(tmp_path, family, **changes)
    recordings = Recordings.of(fused_blocks(span), span.cache, 0, recorder)
    assert recordings is not None
    rows = Rows(span, [20, 3, 41, 9, 30])
    for which in (slice(0, 5), slice(0, 5), slice(1, 4), slice(2, 3), slice(0, 3), slice(4, 5)):
        batch = rows.step(which)
        hidden = torch.randn(batch.rows, span.hidden_size)
        expected = one_by_one(span, hidden, batch)
        kept = [[own.clone() for own in span.cache.view(3, table)] for table in rows.tables]
        batch = rows.again(which)
        assert recordings.takes(batch)
        got = hidden.clone()
        recordings.forward(got, batch)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        for table, before in zip(rows.tables, kept, strict=True):
            torch.testing.assert_close(list(span.cache.view(3, table)), before, atol=1e-5, rtol=1e-5)
    assert recorder.recorded == 3  # for 8, 4 and 1 row
    assert recorder.played == 6


@torch.inference_mode()
def test_what_others_left_in_memory_is_not_read(tmp_path: Path, recorder: Recorder) -> None:
    span = span_of(tmp_path)
    for layer in range(LAYERS):
        keys, values = (tensor[span.cache.place(layer)[1]] for tensor in _arenas(span, layer))
        keys.fill_(torch.nan)
        values.fill_(torch.nan)
    recordings = Recordings.of(fused_blocks(span), span.cache, 0, recorder)
    assert recordings is not None
    rows = Rows(span, [5, 60, 7])
    for _ in range(2):
        states = torch.randn(3, span.hidden_size)
        recordings.forward(states, rows.step())
        assert bool(states.isfinite().all())


def _arenas(span: BlockSpan, layer: int) -> tuple[Tensor, Tensor]:
    arenas, _ = span.cache.place(layer)
    return arenas.keys, arenas.values


def nothing(work: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError("this device records nothing")


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (nothing, "since that fails here: this device records nothing"),
        (lambda work: lambda: None, "since what is played differs from what was recorded"),
    ],
    ids=["fails", "differs"],
)
@torch.inference_mode()
def test_where_recording_does_not_work_blocks_are_computed_as_ever(
    tmp_path: Path, record: Record, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    span = span_of(tmp_path)
    recordings = Recordings.of(fused_blocks(span), span.cache, 0, record)
    assert recordings is not None
    batch = Rows(span, [5, 6]).step()
    hidden = torch.randn(2, span.hidden_size)
    expected = one_by_one(span, hidden, batch)
    recordings.forward(hidden, batch)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    assert not recordings.takes(batch)
    assert f"steps are not recorded, {why}" in caplog.text


@torch.inference_mode()
def test_rows_with_adapters_prompts_and_very_long_rows_are_left_alone(tmp_path: Path, recorder: Recorder) -> None:
    span = span_of(tmp_path)
    recordings = Recordings.of(fused_blocks(span), span.cache, 0, recorder)
    assert recordings is not None
    rows = Rows(span, [5, 6])
    batch = rows.step()
    hook = fused_blocks(span)[1].attention.joined.register_forward_hook(lambda *_: None)
    assert not recordings.takes(batch)
    hook.remove()
    assert recordings.takes(batch)
    rows.tables[0].extend(2)
    prompt = PagedBatch(span.cache, [RowSlice(rows.tables[0], 6, 2)], list(span.windows))
    assert not recordings.takes(prompt)
    batch.longest = 1 << 17
    assert not recordings.takes(batch)


def test_blocks_that_choose_by_what_they_are_given_are_not_recorded(tmp_path: Path, recorder: Recorder) -> None:
    span = span_of(tmp_path, "mixtral")  # a token goes to some experts
    assert Recordings.of(fused_blocks(span), span.cache, 0, recorder) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_a_gpu_records_and_plays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = resolve(str(tiny_model("llama", tmp_path / "model")), cache=tmp_path)
    span = BlockSpan.load(
        checkpoint, Span(0, LAYERS), dtype=torch.bfloat16, device=torch.device("cuda"), kv_tokens=512, page_size=4
    )
    recordings = Recordings.of(fused_blocks(span), span.cache, 0, on_gpu(span.device))
    assert recordings is not None
    rows = Rows(span, [20, 3, 41])
    for _ in range(3):
        states = torch.randn(3, span.hidden_size).to(span.device, span.dtype)
        expected = one_by_one(span, states, rows.step())
        recordings.forward(states, rows.again())
        torch.testing.assert_close(states, expected, atol=2e-2, rtol=2e-2)
    assert recordings.takes(rows.step())
    assert not caplog.records
