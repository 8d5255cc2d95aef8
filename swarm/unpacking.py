"""msgpack from strangers: one value of plain types, or a ValueError before much is spent on it."""

from typing import Any

import msgpack

__all__ = ["MAX_LIST", "MAX_MAP", "unpack"]

MAX_LIST = 8192  # entries of one list: its length makes room for them before they have come, at every depth
MAX_MAP = 256


def unpack(data: bytes | bytearray | memoryview, *, most: int = MAX_LIST) -> Any:
    """The value in `data`, whose lists have at most `most` entries and whose maps 256. Raises ValueError."""
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, max_ext_len=0, max_array_len=most, max_map_len=MAX_MAP
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:  # a map can't be a map's key, say
        raise ValueError(str(error) or type(error).__name__) from error
