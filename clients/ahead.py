"""Greedy decoding that sends the next token off as soon as it is known.

The library's loop does some bookkeeping between one step and the next: whether to stop, who is told, what the model is
given. Peers need not wait for that, which takes as long as a small model's step: whoever looks at scores last knows the
token that will be chosen, and what goes into the first block for it. The step that the loop then asks for is under way
already. Should it ask for another, or for none, peers are told to forget the one that was begun, as for drafts that
were wrong (`clients.cache`).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from clients.cache import SwarmCache

__all__ = ["DecodingAhead"]


class DecodingAhead:
    """Stands before the library's class."""

    embeds_plainly = False  # whether blocks are given the embeddings of tokens, and nothing is done to these before

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        cache = kwargs.get("past_key_values")
        assert isinstance(self, PreTrainedModel)
        known = self.embeds_plainly and not (generation_config.do_sample or self.training)
        if known and isinstance(cache, SwarmCache):
            embed = self.get_input_embeddings()
            last = _Last(lambda tokens: cache.begin(embed(tokens), tokens), generation_config)
            logits_processor = LogitsProcessorList([*logits_processor, last])
        library: Any = super()
        return library._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)


class _Last(LogitsProcessor):
    """Looks at scores when everybody else has, and begins the step of the next tokens `[rows, 1]`, unless the sequence
    ends with them."""

    def __init__(self, begin: Callable[[Tensor], None], config: GenerationConfig) -> None:
        self._begin = begin
        self._ends: Tensor | None = getattr(config, "_eos_token_tensor", None)
        self._most = config.max_length
        self._ended = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._ended or (self._most is not None and input_ids.shape[1] + 1 >= self._most):
            return scores
        tokens = scores.argmax(dim=-1, keepdim=True)
        self._ended = self._ends is not None and bool((tokens == self._ends).any())  # others may go on, but seldom do
        if not self._ended:
            self._begin(tokens)
        return scores
