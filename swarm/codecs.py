"""Hidden states as bytes: raw floats, or int8 in blocks of 64 values, each with a scale of its own.

Raw bytes are little-endian, token after token. `int8` is all scales (fp16, one for each block of each token), then all
values, token after token; a hidden size that is no multiple of 64 has a shorter last block. Blocks are small because
activations hold values near 20 000 among values near 1. NaN and infinity come out as NaN, so that a reader notices.
"""

import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from swarm.dtypes import DTYPES
from swarm.errors import WireError
from swarm.messages import CODECS
from swarm.training import TensorSpec

__all__ = ["body_size", "decode", "encode", "raw_bytes", "read_tensors"]

if sys.byteorder != "little":
    raise ImportError("swarm sends tensors as they lie in memory, little-endian; this machine is big-endian")

BLOCK = 64  # values that share a scale
LEVELS = 127
SCALE = torch.float16
assert set(CODECS) == {*DTYPES, "int8"}


def body_size(codec: str, tokens: int, hidden: int) -> int:
    """Bytes of `tokens` hidden states of width `hidden`. Raises WireError on an unknown codec."""
    if codec == "int8":
        return tokens * (hidden + _blocks(hidden) * SCALE.itemsize)
    return tokens * hidden * _raw_dtype(codec).itemsize


def encode(hidden: Tensor, codec: str) -> bytes | memoryview:
    """`hidden` `[tokens, width]`, any float dtype and device, as bytes.

    The bytes may be the tensor's own memory: don't change it before they are sent.
    """
    if codec == "int8":
        return _encode_int8(hidden)
    return _bytes_of(hidden.detach().to(device="cpu", dtype=_raw_dtype(codec)))


def decode(body: bytes | bytearray | memoryview, codec: str, hidden_size: int) -> Tensor:
    """Hidden states `[tokens, hidden_size]` in own memory; fp32 from int8. Raises WireError on a wrong size."""
    size = memoryview(body).nbytes
    tokens, rest = divmod(size, body_size(codec, 1, hidden_size))
    if rest:
        raise WireError(f"{size} bytes are no whole number of {codec} hidden states of width {hidden_size}")
    if codec == "int8":
        return _decode_int8(body, tokens, hidden_size)
    dtype = _raw_dtype(codec)
    if not tokens:
        return torch.empty(0, hidden_size, dtype=dtype)
    return torch.frombuffer(bytearray(body), dtype=dtype).view(tokens, hidden_size)


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor of any shape and device as it lies in memory, copied."""
    return bytes(_bytes_of(tensor.detach().cpu()))


def read_tensors(specs: Iterable[TensorSpec], body: bytes | bytearray | memoryview) -> list[Tensor]:
    """Tensors in own memory, which lie one after another in a body of the right size."""
    tensors, at = [], 0
    for spec in specs:
        part = bytearray(body[at : at + spec.nbytes])
        dtype = DTYPES[spec.dtype]
        tensors.append((torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)).view(spec.shape))
        at += spec.nbytes
    return tensors


def _encode_int8(hidden: Tensor) -> bytes:
    tokens, width = hidden.shape
    blocks = _blocks(width)
    values = hidden.detach().to(device="cpu", dtype=torch.float32)
    padded = torch.nn.functional.pad(values, (0, blocks * BLOCK - width)).view(tokens, blocks, BLOCK)
    peaks = padded.abs().amax(dim=-1, keepdim=True)
    # A finite peak beyond what fp16 scales reach is cut, not made infinite; NaN and infinity stay as they are.
    scales = torch.where(peaks.isfinite(), (peaks / LEVELS).clamp(max=torch.finfo(SCALE).max), peaks).to(SCALE)
    divisors = torch.where(scales > 0, scales.float(), 1.0)  # also where the scale is NaN: the product is NaN again
    levels = (padded / divisors).round_().clamp_(-LEVELS, LEVELS).nan_to_num_(nan=0.0).to(torch.int8)
    return b"".join((_bytes_of(scales), _bytes_of(levels.view(tokens, blocks * BLOCK)[:, :width])))


def _decode_int8(body: bytes | bytearray | memoryview, tokens: int, width: int) -> Tensor:
    if not tokens:
        return torch.empty(0, width)
    blocks = _blocks(width)
    owned = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    cut = tokens * blocks * SCALE.itemsize
    scales = owned[:cut].view(SCALE).view(tokens, blocks).float().repeat_interleave(BLOCK, dim=1)[:, :width]
    values = owned[cut:].view(torch.int8).view(tokens, width).float()
    return values.mul_(scales)


def _raw_dtype(codec: str) -> torch.dtype:
    try:
        return DTYPES[codec]
    except KeyError:
        raise WireError(f"unknown codec {codec[:40]!r}; known are {', '.join(CODECS)}") from None


def _blocks(width: int) -> int:
    return -(-width // BLOCK)


def _bytes_of(values: Tensor) -> memoryview:
    return values.contiguous().view(torch.uint8).numpy().reshape(-1).data
