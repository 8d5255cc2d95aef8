"""Rotary embeddings that turn with the longest position of a batch: `dynamic` and `longrope` scaling.

What a row computes must not depend on the rows it is packed with, nor on those that ran before it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from peers.pages import RowSlice

__all__ = ["TurningRotary"]


class TurningRotary:
    """The embeddings of one model that turn; most models have none. The library's rules apply to each row by itself."""

    def __init__(self, model: nn.Module) -> None:
        rotaries = (module for module in model.modules() if hasattr(module, "rope_type"))
        self._rotaries = [rotary for rotary in rotaries if any(map(_turns, _leaves(rotary.rope_type)))]
        self._turn = min((turn for rotary in self._rotaries for turn in _turning_points(rotary)), default=0)

    def split(self, rows: Sequence[RowSlice]) -> list[Sequence[RowSlice]]:
        """The rows in batches that may be packed, in the same order: rows beyond the turn run alone."""
        if not self._rotaries or all(row.at + row.n < self._turn for row in rows):
            return [rows]
        return [[row] for row in rows]

    def reset(self) -> None:
        """Forgets the longest row seen so far: the library would use its frequencies for shorter ones too."""
        for rotary in self._rotaries:
            for name, buffer in list(rotary.named_buffers(recurse=False)):
                if name.endswith("original_inv_freq"):
                    setattr(rotary, name.replace("original_", ""), buffer.clone())
            for name in [name for name in vars(rotary) if name.endswith("max_seq_len_cached")]:
                setattr(rotary, name, rotary.original_max_seq_len)


def _turns(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"


def _turning_points(rotary: Any) -> Iterator[int]:
    """Row lengths at which frequencies may change."""
    yield rotary.original_max_seq_len
    parameters = rotary.config.rope_parameters
    for entry in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        if "original_max_position_embeddings" in entry:
            yield entry["original_max_position_embeddings"]


def _leaves(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]
