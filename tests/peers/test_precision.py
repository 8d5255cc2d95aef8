"""What a peer computes in: what it was told, else the quickest of what changes the weights little."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peers.machine import Device
from peers.precision import choose, quickest
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import ModelError, UsageError
from tests.models import tiny_model

CPU = Device("cpu", "1 core", 1 << 30)
MAC = Device("mps", "8 cores", 1 << 30)
GPU = Device("cuda:0", "a GPU", 1 << 30, bf16=True)


def pick(
    checkpoint: Checkpoint, cache: Path, *, dtype: str = "auto", quantization: str = "auto", on: Device = CPU
) -> tuple[str, str]:
    chosen = choose(dtype, quantization, on, checkpoint, threads=1, cache=cache)
    return chosen.dtype, chosen.quantization


def test_what_was_asked_for_is_taken(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert pick(checkpoint, tmp_path, quantization="int4") == ("fp32", "int4")
    assert pick(checkpoint, tmp_path, quantization="none") == ("fp32", "none")
    assert pick(checkpoint, tmp_path, dtype="bf16", quantization="int8") == ("bf16", "int8")
    assert pick(checkpoint, tmp_path, dtype="fp32") == ("fp32", "none")  # a dtype that is named is that of all weights


def test_elsewhere_weights_are_in_half_precision_unless_fewer_bits_are_asked_for(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    assert pick(checkpoint, tmp_path, on=GPU) == ("bf16", "none")
    assert pick(checkpoint, tmp_path, on=GPU, quantization="bf16") == ("bf16", "none")
    assert pick(checkpoint, tmp_path, on=GPU, quantization="nf4") == ("bf16", "nf4")
    assert pick(checkpoint, tmp_path, on=GPU, quantization="int8", dtype="fp16") == ("fp16", "int8")
    for quantization, device, advice in (
        ("int4", GPU, "int4 works on the cpu; use --quantization nf4 on a GPU"),
        ("int4", MAC, "int4 works on the cpu; leave it out for mps"),
        ("nf4", MAC, "nf4 works on GPUs with CUDA; leave it out for mps"),
        ("nf4", CPU, "nf4 works on GPUs with CUDA; use --quantization int4 on the cpu"),
    ):
        with pytest.raises(UsageError, match=f"^--quantization {advice}$"):
            pick(checkpoint, tmp_path, on=device, quantization=quantization)


def test_int8_is_announced_under_another_name_where_activations_are_rounded_too(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    names = [choose("auto", "int8", on, checkpoint, threads=1, cache=tmp_path).name for on in (CPU, GPU)]
    assert names == ["int8", "llm.int8"]


def test_weights_that_never_had_four_bits_are_not_packed_into_four_unasked(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    choose("auto", "auto", CPU, checkpoint, threads=1, cache=tmp_path)
    (products,) = (tmp_path / "profiles").glob("products-*.json")
    products.write_text(json.dumps({"none": 4.0, "bf16": 3.0, "int8": 2.0, "int4": 1.0}))
    chosen = choose("auto", "auto", CPU, checkpoint, threads=1, cache=tmp_path)
    assert chosen.name == "int8"
    assert "the quickest here of fp32, bf16, int8, which change weights by 1.5 % at most" in chosen.reason
    assert pick(four_bit(tmp_path / "four"), tmp_path) == ("fp32", "int4")


def four_bit(folder: Path) -> Checkpoint:
    """The tiny Llama of `checkpoint`, its matrices rounded to 16 levels in blocks of 32."""
    path = tiny_model("llama", folder, max_shard_size="1GB") / "model.safetensors"
    tensors = {name: levelled(tensor) if tensor.dim() > 1 else tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return resolve(str(folder), cache=folder / "cache")


def levelled(weight: torch.Tensor) -> torch.Tensor:
    groups = weight.unflatten(1, (-1, 32))
    low = groups.amin(dim=2, keepdim=True)
    step = (groups.amax(dim=2, keepdim=True) - low) / 15
    return (((groups - low) / step).round() * step + low).flatten(1).contiguous()


def test_a_family_that_cannot_be_packed_runs_as_it_is_unless_asked(tmp_path: Path) -> None:
    experts = resolve(str(tiny_model("mixtral", tmp_path / "m")), cache=tmp_path)
    assert pick(experts, tmp_path) == ("fp32", "none")
    with pytest.raises(ModelError, match="mixtral models can't be served in int8"):
        pick(experts, tmp_path, quantization="int8")


def test_more_loss_has_to_pay() -> None:
    assert quickest({"none": 2.0, "bf16": 1.0, "int8": 0.95}) == "bf16"
    assert quickest({"none": 2.0, "bf16": 1.0, "int8": 0.5}) == "int8"
    assert quickest({"none": 1.0, "bf16": 1.0}) == "none"
