"""What a run will take of this machine's memory, told before it begins."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from clients.finetune.data import Row
from clients.finetune.settings import Settings
from clients.model import SwarmModelForCausalLM
from clients.terminal.sizes import size
from clients.training.memory import Footprint, Shape, footprint
from swarm.errors import MissingBlocks

__all__ = ["Forecast", "forecast", "largest"]


def largest(settings: Settings, rows: Sequence[Row], hops: int) -> Shape:
    """The batch that takes most: of the longest rows."""
    virtual = settings.virtual_tokens if settings.method == "prompt" else 0
    lengths = sorted((len(row.tokens) + virtual for row in rows), reverse=True)[: settings.batch]
    tokens = sum(lengths) * settings.batch // len(lengths)  # rows come again where there are fewer
    return Shape(rows=settings.batch, columns=lengths[0], tokens=tokens, hops=hops)


@dataclass(frozen=True, slots=True)
class Forecast:
    """`whole`: bytes of this process when it takes most."""

    shape: Shape
    parts: Footprint
    whole: int

    def __str__(self) -> str:
        """A sentence; and another where there is not as much left."""
        rows, parts = f"{self.shape.rows} rows of {self.shape.columns} tokens", self.parts
        text = (
            f"this run takes about {size(self.whole)} of memory here: {size(parts.logits)} for logits of {rows}, "
            f"{size(parts.boundaries)} for what passes {self.shape.hops} hops, {size(parts.adapter)} for adapter and "
            f"optimizer, {size(parts.model)} for embeddings and head, the rest for the program"
        )
        free = psutil.virtual_memory().available
        return text if parts.growth < free else f"{text}. Only {size(free)} are free: lower --batch or --max-length"


def forecast(model: SwarmModelForCausalLM, tuned: Any, settings: Settings, rows: Sequence[Row]) -> Forecast:
    """Before the first step."""
    hops = 1
    with suppress(MissingBlocks):  # the run waits for them
        hops = model.training_hops()
    shape = largest(settings, rows, hops)
    parts = footprint(tuned, shape)
    return Forecast(shape, parts, psutil.Process().memory_info().rss + parts.growth)
