"""What a run will take of this machine's memory, told before it begins."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil

from clients.finetune.data import Row
from clients.finetune.settings import Settings
from clients.model import SwarmModelForCausalLM
from clients.terminal.sizes import size
from clients.training.memory import Shape, footprint
from swarm.errors import MissingBlocks

__all__ = ["largest", "tell_memory"]


def largest(settings: Settings, rows: Sequence[Row], hops: int) -> Shape:
    """The batch that takes most: of the longest rows."""
    virtual = settings.virtual_tokens if settings.method == "prompt" else 0
    lengths = sorted((len(row.tokens) + virtual for row in rows), reverse=True)[: settings.batch]
    tokens = sum(lengths) * settings.batch // len(lengths)  # rows come again where there are fewer
    return Shape(rows=settings.batch, columns=lengths[0], tokens=tokens, hops=hops)


def tell_memory(model: SwarmModelForCausalLM, tuned: Any, settings: Settings, rows: Sequence[Row]) -> str:
    """In a sentence; and another where there is not as much left."""
    hops = 1
    with suppress(MissingBlocks):  # the run waits for them
        hops = model.training_hops()
    shape = largest(settings, rows, hops)
    found = footprint(tuned, shape)
    text = (
        f"this run takes about {size(psutil.Process().memory_info().rss + found.growth)} of memory here: "
        f"{size(found.logits)} for logits of {shape.rows} rows of {shape.columns} tokens, {size(found.boundaries)} for "
        f"what enters each hop ({hops}), {size(found.adapter)} for adapter and optimizer, the rest for the program, "
        "embeddings and head"
    )
    free = psutil.virtual_memory().available
    return text if found.growth < free else f"{text}. Only {size(free)} are free: lower --batch or --max-length"
