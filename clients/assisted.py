"""The library's assisted decoding over a swarm: several tokens a trip, and otherwise what plain decoding does.

Beside `assistant_model` and `prompt_lookup_num_tokens`, which are the library's, it takes drafts whose length adapts
(`clients.speculation`), goes on from a cache that is not empty, and lets out no token behind the one at which a
stopping criterion says stop.
"""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.streamers import BaseStreamer

from clients.cache import SwarmCache
from clients.drafts import Drafter, LocalModel
from clients.onebyone import OneByOne
from clients.speculation import Assistant, Candidates
from swarm.errors import UsageError

__all__ = ["AssistedDecoding"]


class AssistedDecoding:
    """Stands before the library's class; `past_key_values` are a SwarmCache when its methods are called."""

    def _assisted_decoding(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        *,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Any:
        if input_ids.shape[0] != 1:
            raise UsageError(f"drafts are for one sequence at a time, not for {input_ids.shape[0]}")
        begin = input_ids.shape[1]
        one_by_one = OneByOne(stopping_criteria, streamer, begin)
        mask = kwargs.get("attention_mask")
        columns = getattr(generation_config, "_mask_length", begin) if mask is None else mask.shape[1]
        library: Any = super()
        result = library._assisted_decoding(
            input_ids,
            logits_processor,
            one_by_one,
            generation_config,
            whole_sequence=columns == begin,
            **kwargs,
        )
        if streamer is not None:
            streamer.end()  # type: ignore[no-untyped-call]
        return one_by_one.cut(result, kwargs["past_key_values"])

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,  # the library looks whether it is named here
        whole_sequence: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The library's. `whole_sequence`: of what the cache holds, `input_ids` are the continuation and the beginning
        too, which assisted decoding does not think of in its first step."""
        cache = kwargs.get("past_key_values")
        if whole_sequence and next_sequence_length is None and isinstance(cache, SwarmCache):
            next_sequence_length = input_ids.shape[1] - cache.get_seq_length()
        library: Any = super()
        inputs: dict[str, Any] = library.prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, inputs_embeds=inputs_embeds, **kwargs
        )
        return inputs

    def _get_candidate_generator(
        self,
        generation_config: GenerationConfig,
        *,
        model_kwargs: dict[str, Any],
        assistant_model: PreTrainedModel | Assistant | None = None,
        **kwargs: Any,
    ) -> CandidateGenerator:
        theirs = {name: value for name, value in model_kwargs.items() if name != "whole_sequence"}
        library: Any = super()

        def assisted(by: PreTrainedModel | None) -> CandidateGenerator:
            candidates: CandidateGenerator = library._get_candidate_generator(
                generation_config, model_kwargs=theirs, assistant_model=by, **kwargs
            )
            return candidates

        if not isinstance(assistant_model, Assistant):
            return assisted(assistant_model)
        speculation = assistant_model.speculation
        chosen = speculation.drafter
        cache: SwarmCache = model_kwargs["past_key_values"]
        return Candidates(
            speculation,
            chosen if isinstance(chosen, Drafter) else LocalModel(assisted(chosen)),
            cache.predict_step,
            max_length=generation_config.max_length,
            end_tokens=getattr(generation_config, "_eos_token_tensor", None),
        )
