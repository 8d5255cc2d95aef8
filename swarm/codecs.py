"""Hidden states and gradients as bytes: raw floats, or fewer bytes with some loss.

Raw bytes are little-endian, token after token. `int8` rounds blocks of 64 values, each with a scale of its own in fp16
(`swarm.rounding`); blocks are small because activations hold values near 20 000 among values near 1. What else there is
serves gradients alone (`GRADIENT_CODECS`), whose values may be far smaller than fp16 reaches: `grad8` and `grad4` round
blocks to 8 and 4 bits. All sizes are known before.
"""

import sys
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from swarm.dtypes import DTYPES
from swarm.errors import WireError
from swarm.fields import CODECS, GRADIENT_CODECS
from swarm.rounding import Rounding, as_bytes
from swarm.training import TensorSpec

__all__ = ["body_size", "decode", "encode", "raw_bytes", "read_tensors"]

if sys.byteorder != "little":
    raise ImportError("swarm sends tensors as they lie in memory, little-endian; this machine is big-endian")

LOSSY: Mapping[str, Rounding] = {
    "int8": Rounding(64, 127, torch.float16),
    "grad8": Rounding(64, 127, torch.bfloat16),
    "grad4": Rounding(32, 7, torch.bfloat16, bits=4),
}
assert {*CODECS, *GRADIENT_CODECS} == {*DTYPES, *LOSSY}


def body_size(codec: str, tokens: int, hidden: int) -> int:
    """Bytes of `tokens` hidden states of width `hidden`. Raises WireError on an unknown codec."""
    if codec in LOSSY:
        return tokens * LOSSY[codec].row_bytes(hidden)
    return tokens * hidden * _raw_dtype(codec).itemsize


def encode(hidden: Tensor, codec: str) -> bytes | memoryview:
    """`hidden` `[tokens, width]`, any float dtype and device, as bytes.

    The bytes may be the tensor's own memory: don't change it before they are sent.
    """
    if codec in LOSSY:
        return LOSSY[codec].encode(hidden)
    return as_bytes(hidden.detach().to(device="cpu", dtype=_raw_dtype(codec)))


def decode(body: bytes | bytearray | memoryview, codec: str, hidden_size: int) -> Tensor:
    """Hidden states `[tokens, hidden_size]` in own memory; fp32 where the codec loses something. Raises WireError on a
    wrong size."""
    size = memoryview(body).nbytes
    tokens, rest = divmod(size, body_size(codec, 1, hidden_size))
    if rest:
        raise WireError(f"{size} bytes are no whole number of {codec} hidden states of width {hidden_size}")
    if codec in LOSSY:
        owned = torch.frombuffer(bytearray(body), dtype=torch.uint8) if tokens else torch.empty(0, dtype=torch.uint8)
        return LOSSY[codec].decode(owned, tokens, hidden_size)
    dtype = _raw_dtype(codec)
    if not tokens:
        return torch.empty(0, hidden_size, dtype=dtype)
    return torch.frombuffer(bytearray(body), dtype=dtype).view(tokens, hidden_size)


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor of any shape and device as it lies in memory, copied."""
    return bytes(as_bytes(tensor.detach().cpu()))


def read_tensors(specs: Iterable[TensorSpec], body: bytes | bytearray | memoryview) -> list[Tensor]:
    """Tensors in own memory, which lie one after another in a body of the right size."""
    tensors, at = [], 0
    for spec in specs:
        part = bytearray(body[at : at + spec.nbytes])
        dtype = DTYPES[spec.dtype]
        tensors.append((torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)).view(spec.shape))
        at += spec.nbytes
    return tensors


def _raw_dtype(codec: str) -> torch.dtype:
    try:
        return DTYPES[codec]
    except KeyError:
        raise WireError(f"unknown codec {codec[:40]!r}; known are {', '.join(CODECS)}") from None
