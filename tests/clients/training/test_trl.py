"""TRL's trainer for chats and texts, as one would write it for a model that is here: the same losses over a swarm."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from clients.model import SwarmModelForCausalLM
from swarm.errors import UsageError
from tests.clients.test_engines import Swarm
from tests.clients.training.test_trainer import LORA, losses

# TRL asks for it by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning:transformers")

STEPS = 4
ROWS = [{"text": "The sky over our town is green" + " and blue" * (index % 3)} for index in range(8)]


@pytest.fixture(scope="module")
def folder(text_folder: Path) -> Path:
    return text_folder


@pytest.fixture
def swarm(folder: Path, tmp_path: Path) -> Iterator[Swarm]:
    swarm = Swarm(folder, tmp_path, (1,))
    yield swarm
    swarm.connection.close()


def trainer(
    model: Any, folder: Path, *, adapter: LoraConfig | None = LORA, collator: Any = None, **options: Any
) -> Any:
    torch.manual_seed(3)  # of the adapter
    arguments = SFTConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        seed=3,
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        **options,
    )
    return SFTTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:3]),
        processing_class=AutoTokenizer.from_pretrained(model.name_or_path),
        peft_config=copy.deepcopy(adapter),
        data_collator=collator,
    )


def padded_left(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    columns = {name: [torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels")}
    columns["attention_mask"] = [torch.ones_like(row) for row in columns["input_ids"]]
    padding = {"labels": -100}
    batch = {
        name: pad_sequence(each, batch_first=True, padding_side="left", padding_value=padding.get(name, 0))
        for name, each in columns.items()
    }
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    batch["labels"][
        positions == 0
    ] = -100  # what stands before a row's first token is padding, of which nothing follows
    return {**batch, "position_ids": positions}


@pytest.mark.parametrize("collator", [None, padded_left], ids=["padded-right", "padded-left"])
def test_losses_are_those_of_local_training(
    collator: Any, model: SwarmModelForCausalLM, local: PreTrainedModel, tmp_path: Path
) -> None:
    here, there = (trainer(each, tmp_path, collator=collator) for each in (copy.deepcopy(local), model))
    here.train()
    there.train()
    assert len(losses(there)) == STEPS
    assert losses(there) == pytest.approx(losses(here), abs=1e-5)
    assert there.evaluate()["eval_loss"] == pytest.approx(here.evaluate()["eval_loss"], abs=1e-5)


def test_a_model_without_an_adapter_is_evaluated(
    model: SwarmModelForCausalLM, local: PreTrainedModel, tmp_path: Path
) -> None:
    here, there = (trainer(each, tmp_path, adapter=None).evaluate() for each in (local, model))
    for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert there[name] == pytest.approx(here[name], abs=1e-5)


def test_texts_packed_into_one_row_are_refused(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give packing=False"):
        trainer(model, tmp_path, packing=True, max_length=64).train()
