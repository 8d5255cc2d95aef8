"""The reference: the model in this process under `transformers`, and the least that its weights and sums could take."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from clients.bench.answers import Answer, ask
from swarm.checkpoint import Checkpoint
from swarm.dtypes import DTYPES
from swarm.errors import UsageError
from swarm.rates import Rates, threads
from swarm.weights import quiet_library

__all__ = ["BITS", "Reference", "Weights"]

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4}  # of a weight; scales come on top


@dataclass(frozen=True, slots=True)
class Weights:
    """How many weights each token is multiplied with. (Of a mixture of experts: all of them, which is too many.)"""

    blocks: int
    head: int

    def size(self, precision: str, head: str = "fp32") -> float:
        """Bytes of them, the blocks in `precision`."""
        return (self.blocks * BITS[precision] + self.head * BITS[head]) / 8

    def operations(self, tokens: int, heads: int, precision: str = "fp32", head: str = "fp32") -> dict[str, float]:
        """With weights of each precision, for `tokens` through the blocks, of which `heads` get logits; attention not
        counted."""
        counts = {precision: 2.0 * self.blocks * tokens}
        counts[head] = counts.get(head, 0.0) + 2.0 * self.head * heads
        return counts

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
        both = {id(p): p.numel() for module in (embedding, head) if module is not None for p in module.parameters()}
        total = sum(parameter.numel() for parameter in model.parameters())
        last = sum(parameter.numel() for parameter in head.parameters()) if head is not None else 0
        return cls(total - sum(both.values()), last)


class Reference:
    """`transformers` with `count` threads; computes nothing else meanwhile."""

    def __init__(self, model: PreTrainedModel, precision: str, count: int) -> None:
        self.model = model
        self.precision = precision
        self.weights = Weights.of(model)
        self._threads = count

    @classmethod
    def load(cls, checkpoint: Checkpoint, precision: str, count: int) -> Self:
        if precision not in DTYPES:
            raise UsageError(f"one process computes in {', '.join(DTYPES)}, not in '{precision}'")
        with quiet_library():
            model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=DTYPES[precision])
        return cls(model.train(False), precision, count)

    def ask(self, prompt: Tensor, new_tokens: int) -> Answer:
        with threads(self._threads):
            return ask(self.model, prompt, new_tokens)

    def token_floor(self, rates: Rates) -> float:
        """Seconds a token can't take less than: every weight is read once."""
        return self.prompt_floor(rates, 1)

    def prompt_floor(self, rates: Rates, tokens: int) -> float:
        """Seconds a prompt can't take less than."""
        both = (self.precision, self.precision)
        return rates.floor(self.weights.size(*both), self.weights.operations(tokens, 1, *both))
