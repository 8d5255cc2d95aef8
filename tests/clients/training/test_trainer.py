"""Ordinary training code over a swarm: the library's Trainer, a loop, an adapter that is saved and used elsewhere."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from clients.model import SwarmModelForCausalLM
from swarm.errors import UsageError
from tests.clients.test_engines import Swarm
from tests.clients.training.adapted import LABELS, MASK, TOKENS, adapted, learning, loss_of

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
STEPS = 8


class Rows(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = index % len(TOKENS)
        return {"input_ids": TOKENS[row], "attention_mask": MASK[row], "labels": LABELS[row]}


def trainer(tuned: Any, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        seed=3,
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    return Trainer(tuned, arguments, train_dataset=Rows(), eval_dataset=Rows())


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_trainers_losses_are_those_of_local_training(
    model: SwarmModelForCausalLM, local: PreTrainedModel, tmp_path: Path
) -> None:
    here = trainer(adapted(copy.deepcopy(local), LORA), tmp_path / "here", save_strategy="no")
    there = trainer(adapted(model, LORA), tmp_path / "there", save_strategy="no")
    here.train()
    there.train()
    assert len(losses(there)) == STEPS
    assert losses(there) == pytest.approx(losses(here), abs=1e-3)
    assert losses(there)[-1] < losses(there)[0]
    assert there.evaluate()["eval_loss"] == pytest.approx(here.evaluate()["eval_loss"], abs=1e-3)


def test_a_run_that_is_resumed_goes_on_as_if_it_had_not_stopped(
    model: SwarmModelForCausalLM, local: PreTrainedModel, tmp_path: Path
) -> None:
    whole = trainer(adapted(copy.deepcopy(local), LORA), tmp_path / "whole", save_strategy="no")
    whole.train()
    tuned = adapted(model, LORA)
    first = trainer(tuned, tmp_path / "parts", save_strategy="steps", save_steps=3)
    first.train()
    for parameter in learning(tuned).values():
        parameter.data.zero_()
    second = trainer(tuned, tmp_path / "parts", save_strategy="no")
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert losses(second) == pytest.approx(losses(whole), abs=1e-3)


def test_a_hop_lost_in_every_step_leaves_the_losses_the_same(
    swarm: Swarm, model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    curves = []
    for victims, tuned in (((), adapted(copy.deepcopy(local), LORA)), (("peer0", "spare3"), adapted(model, LORA))):
        optimizer, curve = torch.optim.AdamW(learning(tuned).values(), lr=1e-2), []
        remaining = list(victims)
        for _ in range(4):
            loss = loss_of(tuned)
            if remaining:
                swarm.connection.call(swarm.memory.kill(remaining.pop()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)


def test_a_saved_adapter_gives_the_same_logits_in_plain_peft(
    model: SwarmModelForCausalLM, local: PreTrainedModel, tmp_path: Path
) -> None:
    tuned = adapted(model, LORA)
    tuned.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(copy.deepcopy(local), tmp_path)
    with torch.no_grad():
        assert torch.allclose(plain(TOKENS).logits, tuned(TOKENS).logits, atol=1e-4)


def test_a_row_longer_than_the_context_is_refused(model: SwarmModelForCausalLM) -> None:
    tuned = adapted(model, LORA)
    with pytest.raises(UsageError, match="longer than this model's context"):
        tuned(torch.ones(1, 1100, dtype=torch.int64))
