"""Packed blocks on disk, so that a span that was packed once is mapped the next time, and shared by processes.

One file a block. Its name says all that its contents depend on; what is in it is checked before it is used, and a file
that is not what was written counts as absent.

    u32 size of index | u32 CRC of all that follows | index, JSON | tensors

Each tensor starts at a multiple of 64 bytes, which safetensors does not promise: torch's int8 kernel ends the process
where a weight lies at anything but a multiple of 16.
"""

import json
import logging
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swarm.atomic import write_file
from swarm.ids import Digest

__all__ = ["PackedFiles"]

_log = logging.getLogger(__name__)

FORMAT = 1  # of what is written; another number, another folder
ALIGNMENT = 64  # bytes
_HEAD = struct.Struct("<II")
_DTYPES = {
    str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool)
}


@dataclass(frozen=True, slots=True)
class PackedFiles:
    """Of the blocks of one model in one precision, in `cache`. Any number of processes may read and write them."""

    cache: Path
    model: Digest
    precision: str

    def path(self, block: int) -> Path:
        """Kernels lay weights out for the processor, each version of torch as it likes."""
        made_by = f"v{FORMAT}-torch{torch.__version__}-{torch.backends.cpu.get_cpu_capability().lower()}"
        return self.cache / "packed" / self.model[:32] / f"{self.precision}-{made_by}" / f"{block}.packed"

    def read(self, block: int) -> dict[str, Tensor] | None:
        """The tensors of a block, mapped; None when they are not there, or damaged."""
        path = self.path(block)
        try:
            size = path.stat().st_size
            storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
            return _parsed(torch.empty(0, dtype=torch.uint8).set_(storage))
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # torch can't map it, or no index
            _log.warning("packing block %d again, since %s is damaged: %s", block, path, error)
            return None

    def write(self, block: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Keeps the tensors of a block; returns them mapped, or None where the disk does not take them."""
        try:
            write_file(self.path(block), _packed(tensors))
        except OSError as error:  # the next start packs again, that is all
            _log.warning("packed blocks can't be kept in %s: %s", self.path(block).parent, error)
            return None
        return self.read(block)


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    offset, index = 0, {}
    for name, tensor in tensors.items():
        index[name] = [str(tensor.dtype), list(tensor.shape), offset]
        offset += _aligned(tensor.nbytes)
    text = json.dumps(index).encode()
    text = text.ljust(_aligned(_HEAD.size + len(text)) - _HEAD.size)
    contents = [bytes(_content(tensor)).ljust(_aligned(tensor.nbytes), b"\0") for tensor in tensors.values()]
    rest = b"".join([text, *contents])
    return _HEAD.pack(len(text), zlib.crc32(rest)) + rest


def _parsed(file: Tensor) -> dict[str, Tensor]:
    """`file`: its bytes. Raises ValueError and what wrong contents lead to."""
    content = _content(file)
    if len(content) < _HEAD.size:
        raise ValueError("it is too short")
    size, checksum = _HEAD.unpack_from(content)
    if zlib.crc32(content[_HEAD.size :]) != checksum:
        raise ValueError("its checksum is wrong")
    start = _HEAD.size + size
    return {
        name: _view(file[start + offset :], _DTYPES[dtype], shape)
        for name, (dtype, shape, offset) in json.loads(bytes(content[_HEAD.size : start])).items()
    }


def _view(bytes_: Tensor, dtype: torch.dtype, shape: list[int]) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return bytes_[:size].view(dtype).view(shape)


def _content(tensor: Tensor) -> memoryview:
    content: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(content)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
