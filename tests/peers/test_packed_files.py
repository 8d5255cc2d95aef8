"""Packed blocks on disk: what was written or nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from peers.packed_files import PackedFiles
from swarm.ids import Digest


@pytest.fixture
def files(tmp_path: Path) -> PackedFiles:
    return PackedFiles(tmp_path, Digest("a" * 64), "int8")


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"mlp.values": torch.arange(64, dtype=torch.int8).view(2, 32), "norm": torch.rand(7).bfloat16()}


def test_a_block_comes_back_as_it_was(files: PackedFiles, tensors: dict[str, Tensor]) -> None:
    assert files.read(3) is None
    mapped = files.write(3, tensors)
    again = files.read(3)
    for found in (mapped, again):
        assert found is not None
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_models_precisions_and_blocks_have_files_of_their_own(tmp_path: Path) -> None:
    digests, precisions = (Digest("a" * 64), Digest("b" * 64)), ("int8", "int4")
    paths = {PackedFiles(tmp_path, d, p).path(block) for d in digests for p in precisions for block in (0, 1)}
    assert len(paths) == 8
    assert all(torch.__version__ in str(path) for path in paths)


def test_tensors_lie_where_the_kernels_can_read_them(files: PackedFiles, tensors: dict[str, Tensor]) -> None:
    found = files.write(0, tensors | {"a": torch.zeros(3, dtype=torch.int8), "b": torch.ones(())})
    assert found is not None
    assert [tensor.data_ptr() % 64 for tensor in found.values()] == [0, 0, 0, 0]


@pytest.mark.parametrize("keep", [0, 5, 100, -1], ids=["empty", "a few bytes", "the header", "all but one byte"])
def test_a_file_cut_short_counts_as_absent(
    files: PackedFiles, tensors: dict[str, Tensor], keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(0, tensors)
    path = files.path(0)
    path.write_bytes(path.read_bytes()[:keep])
    assert files.read(0) is None
    assert "packing block 0 again" in caplog.text


def test_a_file_with_one_wrong_bit_counts_as_absent(
    files: PackedFiles, tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    files.write(0, tensors)
    path = files.path(0)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert files.read(0) is None
    assert "damaged" in caplog.text


def test_a_disk_that_takes_nothing_is_said_and_borne(
    files: PackedFiles, tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    (files.cache / "packed").write_text("a file where a folder should be")
    assert files.write(0, tensors) is None
    assert "can't be kept" in caplog.text
