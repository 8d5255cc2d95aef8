"""What a step of training takes of this machine's memory at its highest, known before it is taken."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clients.head import Head

__all__ = ["Footprint", "Shape", "footprint"]

FP32 = 4  # bytes
ADAPTER_COPIES = 5  # what is trained, its gradients, the two averages of AdamW, and what travels to the peers
FIRST_STEP = 55_000_000  # what libraries take for themselves at the first step, however small (measured)
LOSS_COPIES = 3  # log-probabilities, their gradient, and that of the logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a batch `[rows, columns]` with `tokens` that are no padding, on its way over `hops`."""

    rows: int
    columns: int
    tokens: int
    hops: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes, beside the program and its libraries. `model`: embeddings, norm and head, the head's packed copy included.
    `adapter`: what is trained, in all its copies. `boundaries`: what entered each hop and what left the last, kept for
    the way back. `logits`: what the loss takes."""

    model: int
    adapter: int
    boundaries: int
    logits: int

    @property
    def total(self) -> int:
        return self.model + self.adapter + self.boundaries + self.logits

    @property
    def growth(self) -> int:
        """What steps add to a process that has model and adapter, but has taken none yet."""
        return self.total - self.model - self.adapter // ADAPTER_COPIES + FIRST_STEP


def footprint(tuned: Any, shape: Shape) -> Footprint:
    """Of PEFT's model `tuned`, around a swarm's, with AdamW and the library's loss."""
    base = tuned.get_base_model()
    config = base.config.get_text_config()
    trained = _bytes(parameter for parameter in tuned.parameters() if parameter.requires_grad)
    copies = sum(module.copy_bytes for module in tuned.modules() if isinstance(module, Head))
    resident = _bytes([*tuned.parameters(), *tuned.buffers()]) + copies
    itemsize = base.dtype.itemsize
    return Footprint(
        model=resident - trained,
        adapter=ADAPTER_COPIES * trained,
        boundaries=(shape.hops * shape.tokens + shape.rows * shape.columns) * config.hidden_size * itemsize,
        logits=LOSS_COPIES * shape.rows * shape.columns * config.vocab_size * FP32,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the memory that they share."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
