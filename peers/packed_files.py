"""Packed blocks on disk, so that a span that was packed once is mapped the next time, and shared by processes.

One file a block. Its name says all that its contents depend on; what is in it is checked before it is used, and a file
that is not what was written counts as absent.

    u32 size of index | u32 CRC of all that follows | index, JSON | tensors

Each tensor starts at a multiple of 64 bytes, which safetensors does not promise: torch's int8 kernel ends the process
where a weight lies at anything but a multiple of 16. Weights in oneDNN's own order are kept in it.
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

from swarm.atomic import write_parts
from swarm.ids import Digest
from swarm.mapping import MappedFile
from swarm.opaque import OPAQUE, adopt, description
from swarm.opaque import content as content_of_opaque
from swarm.packing import made_by

__all__ = ["KeptBlock", "PackedFiles"]

_log = logging.getLogger(__name__)

FORMAT = 2  # of what is written; another number, another folder
ALIGNMENT = 64  # bytes
ROWS, COLUMNS = "rows", "columns"  # how values lie that oneDNN has not packed
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
        folder = f"{self.precision}-v{FORMAT}-{made_by(self.precision)}"
        return self.cache / "packed" / self.model[:32] / folder / f"{block}.packed"

    def read(self, block: int) -> dict[str, Tensor] | None:
        """The tensors of a block, mapped; None when they are not there, or damaged."""
        found = self.open(block)
        return None if found is None else found.tensors

    def open(self, block: int) -> "KeptBlock | None":
        """As `read`, together with the mapping in which the tensors lie."""
        path = self.path(block)
        try:
            mapping = MappedFile(path)
            return KeptBlock(mapping, _parsed(mapping.content))
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # no memory to map it, or no index
            _log.warning("packing block %d again, since %s is damaged: %s", block, path, error)
            return None

    def write(self, block: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Keeps the tensors of a block; returns them mapped, or None where the disk does not take them."""
        try:
            write_parts(self.path(block), _packed(tensors))
        except OSError as error:  # the next start packs again, that is all
            _log.warning("packed blocks can't be kept in %s: %s", self.path(block).parent, error)
            return None
        return self.read(block)

    def keep(self, block: int, tensors: Mapping[str, Tensor]) -> "KeptBlock | None":
        """As `write` and `open`, but a file that holds just this is left as it is."""
        path, parts = self.path(block), _packed(tensors)
        start = b"".join(parts[:2])  # sizes, checksum and index: all that follows is in them
        kept = self.open(block) if _start_of(path, len(start)) == start else None
        if kept is None:
            try:
                write_parts(path, parts)
            except OSError as error:
                _log.warning("packed blocks can't be kept in %s: %s", path.parent, error)
                return None
            kept = self.open(block)
        return kept


def _start_of(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


@dataclass(frozen=True, slots=True)
class KeptBlock:
    """The tensors are valid as long as the mapping lives."""

    mapping: MappedFile
    tensors: dict[str, Tensor]


def _packed(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    offset, index = 0, {}
    for name, tensor in tensors.items():
        index[name] = [str(tensor.dtype), list(tensor.shape), offset, _order(tensor)]
        offset += _aligned(len(_content(tensor)))
    text = json.dumps(index).encode()
    text = text.ljust(_aligned(_HEAD.size + len(text)) - _HEAD.size)
    parts: list[bytes | memoryview] = [text]
    for tensor in tensors.values():
        content = _content(tensor)
        parts += [content, b"\0" * (_aligned(len(content)) - len(content))]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [_HEAD.pack(len(text), checksum), *parts]


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
        name: _view(file[start + offset :], _DTYPES[dtype], shape, order)
        for name, (dtype, shape, offset, order) in json.loads(bytes(content[_HEAD.size : start])).items()
    }


def _order(tensor: Tensor) -> str:
    """In which the values of a tensor lie: "rows", "columns", or what oneDNN says of its own."""
    if tensor.layout == OPAQUE:
        return description(tensor).hex()
    return COLUMNS if tensor.dim() == 2 and not tensor.is_contiguous() and tensor.t().is_contiguous() else ROWS


def _view(memory: Tensor, dtype: torch.dtype, shape: list[int], order: str) -> Tensor:
    if order not in (ROWS, COLUMNS):
        return adopt(memory, shape, dtype, bytes.fromhex(order))
    size = torch.Size(shape).numel() * dtype.itemsize
    values = memory[:size].view(dtype)
    return values.view(shape) if order == ROWS else values.view(shape[::-1]).t()


def _content(tensor: Tensor) -> memoryview:
    if tensor.layout == OPAQUE:
        return content_of_opaque(tensor)
    values = tensor.t() if _order(tensor) == COLUMNS else tensor.contiguous()
    content: Any = values.flatten().view(torch.uint8).numpy()
    return memoryview(content)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
