"""An adapter is trained through real peers: the gradients of one process, though a peer is killed on the way; what it
takes of the client's memory; and what is wrong with a run, said on the command line."""

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from clients.training.memory import Shape, footprint
from swarm.cli import run
from swarm.training import PackedAdapter
from tests.clients.training.adapted import adapted, furthest, gradients, learning
from tests.real.conftest import MIDDLE, SPANS
from tests.real.herd import Herd
from tests.real.prompts import Text

LORA = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def test_peer_killed_between_the_passes_leaves_gradients_the_same(
    herd: Herd, local: PreTrainedModel, text: Text
) -> None:
    herd.ensure({**dict.fromkeys(SPANS, 1), MIDDLE: 2})
    batch = text.batch((24, 9, 17))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    here = adapted(copy.deepcopy(local), LORA)
    here(**batch, labels=labels).loss.backward()
    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, patience=90.0
    ) as model:
        there = adapted(model, LORA)
        loss = there(**batch, labels=labels).loss
        at_work = {cost.name for cost in model.training_costs() if cost.span == MIDDLE and cost.tokens}
        herd.kill(next(process for process in herd.of(MIDDLE) if process.name in at_work))
        loss.backward()
        names = {cost.name for cost in model.training_costs() if cost.span == MIDDLE and cost.tokens}
    assert len(names) == 2
    assert furthest(gradients(there), gradients(here)) < 1e-5


def alive(kind: type) -> list[Any]:
    """All objects of a type in this process."""
    return [each for each in gc.get_objects() if issubclass(type(each), kind)]


def memory() -> dict[int, int]:
    """Bytes of tensors in this process by where they are, and of adapters that travel."""
    gc.collect()  # where those are that nobody has any more, others will soon be
    tensors = (tensor for tensor in alive(torch.Tensor) if tensor.layout is torch.strided and not tensor.is_meta)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return storages | {id(packed.body): len(packed.body) for packed in alive(PackedAdapter)}


def test_a_client_holds_what_is_predicted_and_no_block(herd: Herd, text: Text) -> None:
    herd.ensure(dict.fromkeys(SPANS, 1))
    batch = text.batch((64, 40, 64, 57))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    before = memory()
    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, patience=90.0
    ) as model:
        tuned = adapted(model, LORA)
        optimizer = torch.optim.AdamW(learning(tuned).values())
        tuned(**batch, labels=labels).loss.backward()
        optimizer.step()
        resting = memory()
        loss = tuned(**batch, labels=labels).loss
        passing = memory()
        rows, columns = batch["input_ids"].shape
        shape = Shape(rows=rows, columns=columns, tokens=int(batch["attention_mask"].sum()), hops=model.training_hops())
        predicted = footprint(tuned, shape)
        copies = model.lm_head.copy_bytes  # which no tensor shows
        del loss
    assert shape.hops == len(SPANS)
    new = sum(size for where, size in resting.items() if where not in before) + copies
    assert new == pytest.approx(predicted.model + 4 / 5 * predicted.adapter, rel=0.02)  # of five copies one travels
    held = sum(size for where, size in passing.items() if where not in resting)
    assert held == pytest.approx(predicted.boundaries + predicted.adapter / 5, rel=0.1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--targets=z_proj"], "--targets may name: q_proj, k_proj"),
        (["--method=ia3", "--targets=embed_tokens"], "--targets may name"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_in_a_sentence(
    options: list[str], sentence: str, herd: Herd, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "rows.txt").write_text("The sky over our town is green.\n\nOur town lies by the sea.")
    words = [f"--data={tmp_path / 'rows.txt'}", f"--output={tmp_path / 'out'}", f"--cache-dir={herd.cache}"]
    peers = f"--initial-peers={','.join(herd.addresses)}"
    assert run(["finetune", str(herd.checkpoint.folder), *words, peers, "--steps=2", *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
