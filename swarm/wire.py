"""Frames: `u32 total | u32 header length | msgpack header | raw tensor bytes`, little-endian.

`total` counts everything after itself. A reader checks both lengths before it allocates anything. This file knows
nothing of what a header means: that is `swarm.messages`.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from swarm.errors import WireError
from swarm.unpacking import unpack

__all__ = ["MAX_FRAME", "MAX_HEADER", "PREFIX", "Frame", "checked_total", "decode", "encode"]

PREFIX = struct.Struct("<II")  # total, header length
TOTAL = struct.Struct("<I")
MAX_FRAME = 64 << 20  # bytes of one frame, its total included
MAX_HEADER = 256 << 10  # bytes of a header


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: what it says, and the tensor bytes it carries (a view, not a copy)."""

    header: Mapping[str, Any]
    body: memoryview


def encode(header: Mapping[str, Any], *body: bytes | memoryview) -> bytes:
    """One frame as bytes, ready for a single write. Raises WireError when it would be over the limits."""
    packed: bytes = msgpack.packb(header, use_bin_type=True)
    total = TOTAL.size + len(packed) + sum(memoryview(part).nbytes for part in body)
    if len(packed) > MAX_HEADER or total + TOTAL.size > MAX_FRAME:
        raise WireError(f"a frame of {total} bytes with a header of {len(packed)} is over the limits of the protocol")
    return b"".join((PREFIX.pack(total, len(packed)), packed, *body))


def checked_total(prefix: bytes | memoryview, limit: int = MAX_FRAME) -> int:
    """The number of bytes that follow the first four of a frame. Raises WireError before anyone allocates them."""
    (total,) = TOTAL.unpack_from(prefix)
    if not TOTAL.size <= total <= limit - TOTAL.size:
        raise WireError(f"a frame announces {total} bytes; between {TOTAL.size} and {limit - TOTAL.size} are allowed")
    return int(total)


def decode(data: bytes | bytearray | memoryview) -> Frame:
    """The frame in `data`, which holds exactly one. Raises WireError on anything else."""
    view = memoryview(data)
    if view.nbytes < PREFIX.size:
        raise WireError(f"a frame has at least {PREFIX.size} bytes, this one has {view.nbytes}")
    total, length = PREFIX.unpack_from(view)
    if total != view.nbytes - TOTAL.size or total > MAX_FRAME:
        raise WireError(f"a frame announces {total} bytes and brings {view.nbytes - TOTAL.size}")
    if length > MAX_HEADER or PREFIX.size + length > view.nbytes:
        raise WireError(f"a header of {length} bytes does not fit its frame or the limit of {MAX_HEADER}")
    packed = view[PREFIX.size : PREFIX.size + length]
    try:
        header = unpack(packed)
    except ValueError as error:
        raise WireError(f"a header that is no msgpack: {error}") from error
    if not isinstance(header, dict):
        raise WireError(f"a header is a map, not a {type(header).__name__}")
    return Frame(header, view[PREFIX.size + length :])
