"""A tiny random model with the tokenizer and the chat template of the embedded one: it talks nonsense, but fast."""

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from swarm.catalogue import default_cache
from swarm.checkpoint import resolve

__all__ = ["save_text_model"]


def save_text_model(folder: Path, *, seed: int = 0) -> Path:
    """Two blocks of 64 wide; saved to `folder`, which is returned."""
    embedded = resolve("smollm2", cache=default_cache(os.environ))
    known = embedded.config
    config = AutoConfig.for_model(
        "llama",
        vocab_size=known.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id,
        pad_token_id=known.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    for file in embedded.folder.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith("index.json") and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)
    return folder
