"""Rotary embeddings that turn with the longest position of a batch: `dynamic` and `longrope` scaling.

What a row computes must not depend on the rows it is packed with, nor on those that ran before it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peers.batch import Heads
from peers.pages import RowSlice
from peers.turns import Compute, Halves, Pairs, Source, Turning

__all__ = ["Rotaries", "TurningRotary"]


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

    def turns(self, rotary: nn.Module) -> bool:
        return any(rotary is own for own in self._rotaries)

    def reset(self) -> None:
        """Forgets the longest row seen so far: the library would use its frequencies for shorter ones too."""
        for rotary in self._rotaries:
            for name, buffer in list(rotary.named_buffers(recurse=False)):
                if name.endswith("original_inv_freq"):
                    setattr(rotary, name.replace("original_", ""), buffer.clone())
            for name in [name for name in vars(rotary) if name.endswith("max_seq_len_cached")]:
                setattr(rotary, name, rotary.original_max_seq_len)


class Rotaries:
    """The rotary embeddings of a model, found by what they give: each layer was given that of one of them."""

    def __init__(
        self, model: nn.Module, turning: TurningRotary, positions: Tensor, dtype: torch.dtype, *, in_pairs: bool
    ) -> None:
        """`positions` `[1, T]`: those for which layers were given position embeddings. `in_pairs`: whether heads can be
        put into `pair_order`."""
        self._found: list[tuple[tuple[Tensor, Tensor], Source]] = []
        self._made: dict[tuple[int, Heads], Turning] = {}
        like = torch.empty(0, dtype=dtype, device=positions.device)
        for rotary in (module for module in model.modules() if hasattr(module, "rope_type")):
            kinds = list(rotary.rope_type) if isinstance(rotary.rope_type, dict) else [None]
            for kind in kinds:
                compute = _compute(rotary, like, kind)
                cos, sin = compute(positions)
                if _turns_halves(cos) and _turns_halves(sin):
                    turn = Pairs if in_pairs else Halves
                    fixed = not turning.turns(rotary)
                    width, device = cos.shape[-1], positions.device
                    self._found.append(((cos, sin), Source(compute, turn, width, fixed, device)))

    def of(self, given: object, heads: Heads) -> list[Turning | None]:
        """In which ways a layer that was given these embeddings may turn its heads, the likeliest first."""
        if isinstance(given, tuple) and len(given) == 2:
            for index, ((cos, sin), source) in enumerate(self._found):
                if torch.equal(cos, given[0]) and torch.equal(sin, given[1]):
                    return [self._made.setdefault((index, heads), Turning(source, heads)), None]
        return [None]


def _compute(rotary: Any, like: Tensor, kind: str | None) -> Compute:
    def compute(positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotary(like, positions) if kind is None else rotary(like, positions, kind)
        return cos, sin

    return compute


def _turns_halves(values: Tensor) -> bool:
    half, odd = divmod(values.shape[-1], 2)
    return values.dim() == 3 and not odd and torch.equal(values[..., :half], values[..., half:])


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
