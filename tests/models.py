"""Tiny random models of the families that swarm must run, saved as Hugging Face folders.

Small, but not simple: windows of 8 tokens, soft caps low enough to bend, attention sinks, several shards, tied and
untied heads, dense layers among sparse ones. Compare Gemma 2 (soft caps) and GPT-OSS (sinks) with the library's eager
attention, which is its default for them: its sdpa leaves both out.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "granite",
)

WINDOW = 8  # tokens of every sliding window
_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": WINDOW, "tie_word_embeddings": False},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
        "tie_word_embeddings": False,
    },
    "gemma2": {
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {
        "num_hidden_layers": 6,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 16,
    },
    "phi3": {"sliding_window": WINDOW, "original_max_position_embeddings": 1024},
    "olmo2": {"tie_word_embeddings": False},
    "gpt_neox": {"rotary_pct": 0.5, "use_parallel_residual": True, "tie_word_embeddings": False},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "mlp_only_layers": [1],
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.1,
        "logits_scaling": 2.0,
    },
}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(family, **(_COMMON | _SPECIAL[family] | changes))


def tiny_model(family: str, folder: Path, *, seed: int = 0, max_shard_size: str = "100KB", **changes: Any) -> Path:
    """Saves a random fp32 model of `family`, with `changes` of its config, to `folder` as config and several
    safetensors shards; returns `folder`."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    _randomise(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    """Weights large enough that every part of a block shows in the logits: norms, biases and sinks too."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        else:
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
