"""A folder that PEFT wrote is read as PEFT reads it, and named as whoever uploads the same adapter names it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from clients.training.adapters import find_adapters
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import ModelError
from swarm.hub import Hub
from swarm.ids import Span
from swarm.peft_folder import CONFIG_FILE, WEIGHTS_FILE, check_base, find_folder, read_folder
from tests.clients.training.adapted import adapted
from tests.hub_server import COMMIT, hub_server
from tests.models import tiny_model

CONFIGS: Mapping[str, Any] = {
    "lora": LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=3,
        use_rslora=True,
        rank_pattern={"down_proj": 2, r"model.layers.1.self_attn.q_proj": 3},
        alpha_pattern={r"layers\.[01]\.mlp\.down_proj": 5},
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    ),
    "some blocks": LoraConfig(
        r=2, target_modules=["gate_proj"], layers_to_transform=[1, 3], layers_pattern="layers", task_type="CAUSAL_LM"
    ),
    "ia3": IA3Config(
        target_modules=["k_proj", "up_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "ia3 by pattern": IA3Config(
        target_modules=r".*\.(q_proj|down_proj)", feedforward_modules=r".*mlp.*", task_type="CAUSAL_LM"
    ),
}


def saved(checkpoint: Checkpoint, config: Any, folder: Path) -> Path:
    """`folder`, with an adapter of `checkpoint`."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    adapted(model, config).save_pretrained(folder)
    return folder


def rewritten(folder: Path, **changes: Any) -> Path:
    """The same folder with other words in its configuration."""
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def check_as_peft(folder: Path, checkpoint: Checkpoint) -> None:
    base = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(folder))
    blocks = loaded.get_base_model().get_submodule(checkpoint.architecture.blocks)
    packed = find_adapters(list(blocks)).pack()
    stored = read_folder(folder, checkpoint)
    assert dict(stored.blocks) == packed
    assert dict(stored.keys) == {block: adapter.key for block, adapter in packed.items()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_says_what_peft_makes_of_it(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    check_as_peft(saved(checkpoint, CONFIGS[kind], tmp_path), checkpoint)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_neox", "phi3", "qwen3_moe"])
def test_a_folder_of_another_family_says_what_peft_makes_of_it(family: str, tmp_path: Path) -> None:
    checkpoint = resolve(str(tiny_model(family, tmp_path / "model")), cache=tmp_path / "cache")
    targets = {"gpt_neox": ["query_key_value", "dense"], "phi3": ["qkv_proj", "down_proj"]}
    config = LoraConfig(r=2, target_modules=targets.get(family, ["k_proj", "o_proj"]), task_type="CAUSAL_LM")
    check_as_peft(saved(checkpoint, config, tmp_path / "adapter"), checkpoint)


def test_narrow_numbers_are_widened_as_peft_does(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = saved(checkpoint, CONFIGS["lora"], tmp_path) / WEIGHTS_FILE
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    check_as_peft(tmp_path, checkpoint)


def test_the_digest_is_of_the_whole_whatever_part_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = saved(checkpoint, CONFIGS["lora"], tmp_path)
    whole, part = read_folder(folder, checkpoint), read_folder(folder, checkpoint, Span(1, 3))
    assert part.digest == whole.digest
    assert {*part.blocks} == {1, 2}
    assert {*whole.blocks} == {0, 1, 2, 3}
    assert part.nbytes < whole.nbytes


def test_one_number_more_is_another_adapter(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = saved(checkpoint, CONFIGS["lora"], tmp_path)
    before = read_folder(folder, checkpoint).digest
    assert read_folder(rewritten(folder, lora_alpha=9), checkpoint).digest != before


def test_an_adapter_of_a_larger_model_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for change, what in (
        ({"num_hidden_layers": 6}, "changes block 4, and llama has 4 blocks"),
        ({"hidden_size": 96}, "'model.layers.0.self_attn.q_proj' is 64 wide and gives 64 here"),
    ):
        name = "-".join(change)
        other = resolve(str(tiny_model("llama", tmp_path / name, **change)), cache=tmp_path / "cache")
        folder = saved(other, CONFIGS["lora"], tmp_path / f"{name}-adapter")
        with pytest.raises(ModelError, match=rf"of another model.*{what}"):
            read_folder(folder, checkpoint)


def test_an_adapter_of_another_family_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = resolve(str(tiny_model("phi3", tmp_path / "phi3")), cache=tmp_path / "cache")
    config = LoraConfig(r=2, target_modules=["qkv_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match=r"another model: 'model.layers.0.self_attn.qkv_proj' is not in this model"):
        read_folder(saved(other, config, tmp_path / "adapter"), checkpoint)


def test_an_adapter_of_another_model_of_the_same_shape_is_refused_where_that_model_is_known(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    other = resolve(str(tiny_model("llama", tmp_path / "other", seed=1)), cache=tmp_path / "cache")
    folder = saved(other, CONFIGS["lora"], tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"made for .*other, which is another model than llama"):
        check_base(read_folder(folder, checkpoint), checkpoint, cache=tmp_path / "cache")
    for name in (str(checkpoint.folder), str(other.folder / ".." / ".." / "gone"), "some/where"):
        stored = read_folder(rewritten(folder, base_model_name_or_path=name), checkpoint)
        check_base(stored, checkpoint, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"use_dora": True}, "wants 'use_dora'"),
        ({"modules_to_save": ["norm"]}, "wants 'modules_to_save'"),
        ({"init_lora_weights": "pissa"}, "began with 'pissa'"),
        ({"of_a_later_version": 1}, "wants 'of_a_later_version'"),
        ({"alpha_pattern": {"(": 1}}, "makes no sense"),
        ({"lora_alpha": "many"}, "makes no sense"),
        ({"peft_type": "LOHA"}, "of type LOHA: peers take LORA and IA3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_peers_cannot_compute_is_refused(
    changes: dict[str, Any], what: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = rewritten(saved(checkpoint, CONFIGS["lora"], tmp_path), **changes)
    with pytest.raises(ModelError, match=what):
        read_folder(folder, checkpoint)


def test_what_is_outside_of_blocks_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = saved(checkpoint, CONFIGS["lora"], tmp_path) / WEIGHTS_FILE
    save_file({**load_file(file), "base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)}, file)
    with pytest.raises(ModelError, match="'lm_head', which is in none of llama's blocks"):
        read_folder(tmp_path, checkpoint)


def test_folders_that_hold_no_adapter_say_what_is_missing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no adapter_config.json"):
        read_folder(tmp_path, checkpoint)
    folder = saved(checkpoint, CONFIGS["lora"], tmp_path / "adapter")
    file = folder / WEIGHTS_FILE
    tensors = load_file(file)
    first = next(iter(tensors))
    for damage, what in (
        (lambda: save_file({**tensors, first: tensors[first] * float("nan")}, file), "not finite"),
        (lambda: save_file({**tensors, "surprise": torch.ones(1)}, file), "holds 'surprise'"),
        (lambda: save_file({name: t for name, t in tensors.items() if name != first}, file), "don't fit"),
        (lambda: save_file({**tensors, first: tensors[first].double()}, file), "neither fp32, bf16 nor fp16"),
        (lambda: save_file({}, file), "changes nothing"),
        (lambda: file.write_bytes(b"no tensors"), "damaged or cut short"),
        (file.unlink, "save the adapter again"),
        (lambda: (folder / CONFIG_FILE).write_text("[]"), "of type none"),
        (lambda: (folder / CONFIG_FILE).write_text("{"), "cannot be read"),
    ):
        damage()
        with pytest.raises(ModelError, match=what):
            read_folder(folder, checkpoint)


def test_an_adapter_comes_from_the_hub(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = saved(checkpoint, CONFIGS["lora"], tmp_path / "adapter")
    expected = read_folder(folder, checkpoint).digest
    with hub_server({"somebody/adapter": {"main": folder, COMMIT: folder}}) as server:
        fetched = find_folder("somebody/adapter", source=Hub(endpoint=server.url, cache=tmp_path / "hub"))
    assert read_folder(fetched, checkpoint).digest == expected
    assert find_folder(str(folder)) == folder
    with pytest.raises(ModelError, match="no adapter 'nowhere'"):
        find_folder("nowhere")
