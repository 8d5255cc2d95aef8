"""From a checkpoint to a model object: the library's class and loader, and blocks that take no memory."""

import copy
import functools
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from clients.blocks import ATTENTION, blocks_of
from clients.head import Head
from swarm.checkpoint import Checkpoint, client_weights
from swarm.errors import ModelError, UsageError
from swarm.layout import let_go_of_files
from swarm.weights import quiet_library

__all__ = ["build"]

M = TypeVar("M", bound=PreTrainedModel)


def build(base: type[M], checkpoint: Checkpoint, dtype: torch.dtype | None, head: str | None = None) -> M:
    """A frozen instance of both `base` and the library's class for the checkpoint, on the CPU; `dtype` None: as in the
    checkpoint; `head`: see `clients.head`. Raises ModelError when weights are missing."""
    config = copy.deepcopy(checkpoint.config)
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False  # routers are with the blocks
    arch = checkpoint.architecture
    cls: type[M] = _class_for(cast(Any, base), cast(Any, arch.causal), arch.blocks)
    with quiet_library():
        model, info = super(base, cls).from_pretrained(  # type: ignore[misc]
            None,
            config=config,
            state_dict=client_weights(checkpoint),
            dtype=dtype or config.dtype or torch.float32,
            attn_implementation=ATTENTION,
            output_loading_info=True,
        )
    wrong = sorted({str(key) for key in (*info["missing_keys"], *info["mismatched_keys"])})
    if wrong:
        raise ModelError(f"{checkpoint.folder} lacks {len(wrong)} tensors that a client needs, {wrong[0]} among them")
    model.name_or_path = model.config.name_or_path = str(checkpoint.folder)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    _put_head(model, head)
    let_go_of_files(model)
    return cast(M, model.requires_grad_(False))


def _put_head(model: PreTrainedModel, precision: str | None) -> None:
    """A fast head in the place of the library's, under the same name."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear:
        if precision is not None:
            raise UsageError(f"the head of this model is no plain linear layer, so it can't be had in {precision}")
        return
    path = next(name for name, module in model.named_modules() if module is head)
    owner, _, name = path.rpartition(".")
    fast = Head.of(head)
    fast.pack(precision)
    setattr(model.get_submodule(owner), name, fast)


@functools.cache
def _class_for(base: Any, causal: Any, blocks: str) -> Any:
    """For example SwarmLlamaForCausalLM, a subclass of `base` and of LlamaForCausalLM."""
    names = {
        "__module__": base.__module__,
        "_blocks_path": blocks,
        "_finalize_model_loading": staticmethod(_finalize),
    }
    return type(f"Swarm{causal.__name__}", (base, causal), names)


def _finalize(model: PreTrainedModel, load_config: Any, report: Any) -> Any:
    """The library's own last step of loading, where it would give memory to whatever is missing: blocks get zeros that
    take none, and do not count as missing."""
    blocks = blocks_of(model)
    blocks.hollow()
    hollow = {id(parameter) for parameter in blocks.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    report.missing_keys -= {name for name, parameter in named if id(parameter) in hollow}
    report = PreTrainedModel._finalize_model_loading(model, load_config, report)
    blocks.hollow()  # buffers, which the library has made again
    return report
