"""Audits on the real model: honest peers of any two precisions agree, and a block that was left out is seen."""

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from clients.auditing import FIRST, LAST, distance
from fault.audits import agree
from peers.pages import PageTable, RowSlice
from peers.quantized import Packing
from peers.span import BlockSpan
from swarm.checkpoint import Checkpoint, client_weights
from swarm.ids import Span
from swarm.quality import prose

pytestmark = pytest.mark.soak

PRECISIONS = ("fp32", "bf16", "int8", "int4")
TEXTS, TOKENS = 20, 80
EACH = 4  # audits of one text and one pair of precisions; 1 280 in all


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint) -> list[Tensor]:
    ids: Tensor = AutoTokenizer.from_pretrained(checkpoint.folder)(prose(), return_tensors="pt").input_ids[0]
    embeddings = client_weights(checkpoint)["model.embed_tokens.weight"]
    return [embeddings[ids[at : at + TOKENS]] for at in range(0, TEXTS * TOKENS, TOKENS)]


@pytest.fixture(scope="module")
def outputs(checkpoint: Checkpoint, inputs: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> "Outputs":
    return Outputs(checkpoint, inputs, tmp_path_factory.mktemp("packed"))


class Outputs:
    """Of all blocks, in each precision; and in fp32 without block 15."""

    def __init__(self, checkpoint: Checkpoint, inputs: list[Tensor], cache: Path) -> None:
        self._checkpoint = checkpoint
        last = Span(0, checkpoint.num_blocks)
        self.of = {kind: list(self._run(last, kind, inputs, cache)) for kind in PRECISIONS}
        before = list(self._run(Span(0, 15), "fp32", inputs, cache))
        self.lacking = list(self._run(Span(16, last.end), "fp32", before, cache))

    def _run(self, blocks: Span, kind: str, inputs: list[Tensor], cache: Path) -> Iterator[Tensor]:
        packing = None if kind == "fp32" else Packing(kind, cache)
        cpu = torch.device("cpu")
        span = BlockSpan.load(
            self._checkpoint, blocks, dtype=torch.float32, device=cpu, kv_tokens=2 * TOKENS, packing=packing
        )
        for hidden in inputs:
            table = PageTable(span.pool)
            table.extend(len(hidden))
            yield span.forward(hidden, [RowSlice(table, 0, len(hidden))]).clone()
            table.release()


def test_no_honest_peer_is_accused_in_a_thousand_audits(inputs: list[Tensor], outputs: Outputs) -> None:
    dice, audits, alarms = random.Random(5), 0, []
    for text, (one, other), _ in product(range(TEXTS), product(PRECISIONS, PRECISIONS), range(EACH)):
        stop = dice.randint(FIRST + 1, TOKENS)
        at = slice(max(FIRST, stop - dice.choice((1, LAST))), stop)
        apart = distance(outputs.of[one][text][at], outputs.of[other][text][at], inputs[text][at])
        audits += 1
        if not agree(apart, [one], [other], stop - at.start):
            alarms.append((one, other, apart))
    assert audits >= 1000
    assert alarms == []


@pytest.mark.parametrize("other", PRECISIONS)
def test_block_that_was_left_out_is_always_seen(inputs: list[Tensor], outputs: Outputs, other: str) -> None:
    for text, stop in product(range(TEXTS), range(FIRST + LAST, TOKENS, 7)):
        at = slice(stop - LAST, stop)
        apart = distance(outputs.lacking[text][at], outputs.of[other][text][at], inputs[text][at])
        assert not agree(apart, [other], [other], LAST)
