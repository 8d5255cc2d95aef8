"""An adapter is trained through real peers: the gradients of one process, though a peer is killed on the way."""

import copy

from peft import LoraConfig
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from tests.clients.training.adapted import adapted, furthest, gradients
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
