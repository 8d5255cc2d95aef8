"""What each precision costs the embedded model, through a real span of all its blocks; and what loading one takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from peers.pages import PageTable, RowSlice
from peers.quantized import AT_ONCE, Packing
from peers.span import BlockSpan
from peers.span_memory import span_bytes
from swarm.checkpoint import Checkpoint, client_weights
from swarm.ids import Span
from swarm.quality import perplexity, prose

TOKENS = 300
# How much more perplexity than fp32, at most, of a model whose weights once had four bits (measured: at most a third).
LOSS = {"bf16": 0.01, "int8": 0.03, "int4": 0.01}


class Whole:
    """The model, its blocks in one span."""

    def __init__(self, checkpoint: Checkpoint, packing: Packing | None) -> None:
        self._blocks = BlockSpan.load(
            checkpoint,
            Span(0, checkpoint.num_blocks),
            dtype=torch.float32,
            device=torch.device("cpu"),
            kv_tokens=TOKENS,
            packing=packing,
        )
        weights = client_weights(checkpoint)
        self._embeddings, self._norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self._eps = checkpoint.config.rms_norm_eps

    def logits(self, tokens: Tensor) -> Tensor:
        table = PageTable(self._blocks.pool)
        table.extend(len(tokens))
        hidden = self._blocks.forward(self._embeddings[tokens], [RowSlice(table, 0, len(tokens))])
        table.release()
        return torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], self._norm, self._eps) @ self._embeddings.T


@pytest.fixture(scope="module")
def tokens(checkpoint: Checkpoint) -> Tensor:
    ids: Tensor = AutoTokenizer.from_pretrained(checkpoint.folder)(prose(), return_tensors="pt").input_ids[0]
    return ids[:TOKENS]


@pytest.fixture(scope="module")
def exact(checkpoint: Checkpoint, tokens: Tensor) -> float:
    """Perplexity in fp32."""
    return perplexity(Whole(checkpoint, None).logits, tokens)


@pytest.mark.parametrize("precision", LOSS)
def test_no_precision_loses_more_than_is_stated(
    checkpoint: Checkpoint, cache: Path, tokens: Tensor, exact: float, precision: str
) -> None:
    found = perplexity(Whole(checkpoint, Packing(precision, cache)).logits, tokens)
    assert found / exact - 1 < LOSS[precision]


LOADING = """
import sys, resource, torch
from pathlib import Path
from peers.quantized import Packing, load_packed
from swarm.checkpoint import resolve
from swarm.ids import Span

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
model, cache, packed, end = sys.argv[1:]
checkpoint = resolve(model, cache=Path(cache))
load_packed(checkpoint, Span(0, 1), Packing("int4", Path(packed, "warm")), dtype=torch.float32)  # lazy imports
before = peak()
load_packed(checkpoint, Span(0, int(end)), Packing("int4", Path(packed)), dtype=torch.float32)
print(peak() - before)
"""


def test_loading_never_holds_the_unpacked_span(checkpoint: Checkpoint, cache: Path, tmp_path: Path) -> None:
    """At its peak it takes the packed span, the blocks that are read at once, and what packing one takes."""
    blocks = Span(0, 12)
    arguments = [str(checkpoint.folder), str(cache), str(tmp_path), str(blocks.end)]
    done = subprocess.run([sys.executable, "-c", LOADING, *arguments], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    packed = span_bytes(checkpoint, blocks, torch.float32, "int4")
    one = span_bytes(checkpoint, Span(0, 1), torch.float32)
    assert int(done.stdout) < packed + AT_ONCE + 4 * one < span_bytes(checkpoint, blocks, torch.float32)
