"""Generating with an adapter that peers host is what plain PEFT does with its tensors, which are not here."""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from clients.connection import Connection
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import MissingBlocks, UsageError
from swarm.ids import Span
from swarm.memory import MemoryNetwork
from swarm.peft_folder import read_folder
from tests.clients.test_engines import After
from tests.clients.training.adapted import TOKENS, adapted
from tests.memory_swarm import MemorySwarm

EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = LoraConfig(r=4, use_rslora=True, lora_dropout=0.1, target_modules=EVERYWHERE, task_type="CAUSAL_LM")
SOME = LoraConfig(
    r=2, target_modules=["q_proj"], layers_to_transform=[2], layers_pattern="layers", task_type="CAUSAL_LM"
)
IA3 = IA3Config(
    target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
)
CONFIGS = {"lora": LORA, "some": SOME, "ia3": IA3}
PROMPT = TOKENS[:1]
LONG = torch.arange(5, 45)[None]
NEW = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return resolve(str(folder), cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def adapters(checkpoint: Checkpoint, local: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders that PEFT wrote, by kind."""
    folder = tmp_path_factory.mktemp("adapters")
    for kind, config in CONFIGS.items():
        adapted(copy.deepcopy(local), config).save_pretrained(folder / kind)
    return folder


class Hosts:
    """Peers in memory, some of which host adapters, and a connection to them; real time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.memory = MemorySwarm(checkpoint, MemoryNetwork())
        self.connection = Connection(self._enter, patience=1.0)

    async def _enter(self, stack: Any) -> Any:
        await stack.enter_async_context(self.memory)
        return await self.memory.client()

    def add(self, name: str, start: int, end: int, **adapters: Path) -> None:
        self.connection.call(self.memory.add(name, Span(start, end), adapters=adapters))

    def opened(self, name: str) -> int:
        return self.memory.members[name].engine.stats().sessions_opened

    def kill_at_work(self, *names: str) -> None:
        busy = max(names, key=lambda name: self.memory.members[name].engine.stats().tokens_done)
        self.connection.call(self.memory.kill(busy))


@pytest.fixture
def hosts(checkpoint: Checkpoint) -> Iterator[Hosts]:
    hosts = Hosts(checkpoint)
    yield hosts
    hosts.connection.close()


@pytest.fixture
def model(hosts: Hosts, folder: Path, tmp_path: Path) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=hosts.connection) as model:
        yield model


def tokens_of(model: Any, ids: Tensor = PROMPT, **options: Any) -> Any:
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **NEW, **options).tolist()


def by_peft(local: PreTrainedModel, folder: Path) -> Any:
    return PeftModel.from_pretrained(copy.deepcopy(local), str(folder)).eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_and_logits_equal_those_of_peft(
    kind: str, hosts: Hosts, model: SwarmModelForCausalLM, local: PreTrainedModel, adapters: Path
) -> None:
    hosts.add("first", 0, 2, style=adapters / kind)
    hosts.add("second", 2, 4, style=adapters / kind)
    model.load_hosted_adapter("style")
    here = by_peft(local, adapters / kind)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, here(TOKENS).logits, atol=1e-4, rtol=1e-4)
    assert tokens_of(model) == tokens_of(here) != tokens_of(local)


def test_peers_without_the_adapter_take_no_part(
    hosts: Hosts, folder: Path, tmp_path: Path, local: PreTrainedModel, adapters: Path
) -> None:
    hosts.add("plain", 0, 4)
    hosts.add("whole", 0, 4, style=adapters / "lora")
    connection = hosts.connection
    with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=connection, adapter="style") as model:
        assert tokens_of(model) == tokens_of(by_peft(local, adapters / "lora"))
        assert (hosts.opened("plain"), hosts.opened("whole")) == (0, 1)


def test_what_replaces_a_killed_host_hosts_it_too(
    hosts: Hosts, model: SwarmModelForCausalLM, local: PreTrainedModel, adapters: Path
) -> None:
    hosts.add("first", 0, 2, style=adapters / "lora")
    for name in ("second", "spare"):
        hosts.add(name, 2, 4, style=adapters / "lora")
    hosts.add("plain", 0, 4)
    model.load_hosted_adapter("style")
    streamer = After(3, lambda: hosts.kill_at_work("second", "spare"))
    assert tokens_of(model, streamer=streamer) == tokens_of(by_peft(local, adapters / "lora"))
    assert hosts.opened("plain") == 0
    hosts.kill_at_work(*(hosts.memory.members.keys() - {"first", "plain"}))
    with pytest.raises(
        MissingBlocks, match="blocks 2:4 are held with the adapter only by peers that failed lately: second, spare"
    ):
        tokens_of(model)


def test_another_adapter_of_the_same_name_is_never_mixed_in(
    hosts: Hosts, model: SwarmModelForCausalLM, local: PreTrainedModel, adapters: Path, checkpoint: Checkpoint
) -> None:
    hosts.add("first", 0, 2, style=adapters / "lora")
    hosts.add("second", 2, 4, style=adapters / "ia3")
    with pytest.raises(MissingBlocks, match="hosts the adapter style@"):
        model.load_hosted_adapter("style")
    hosts.add("third", 2, 4, style=adapters / "lora")
    model.load_hosted_adapter("style")
    assert tokens_of(model) == tokens_of(by_peft(local, adapters / "lora"))
    hosts.add("fourth", 0, 2, style=adapters / "ia3")
    with pytest.raises(UsageError, match=r"different adapters are called 'style': say which, style@\w+ or style@"):
        model.load_hosted_adapter("style")
    name = f"style@{read_folder(adapters / 'ia3', checkpoint).digest[:8]}"
    model.load_hosted_adapter(name)
    assert model.active_adapters() == [name]
    assert tokens_of(model) == tokens_of(by_peft(local, adapters / "ia3"))


def test_a_peer_that_only_says_it_hosts_is_left_alone(
    hosts: Hosts, model: SwarmModelForCausalLM, local: PreTrainedModel, adapters: Path, checkpoint: Checkpoint
) -> None:
    hosts.add("honest", 0, 4, style=adapters / "lora")
    hosts.add("liar", 0, 4)
    digest = read_folder(adapters / "lora", checkpoint).digest
    hosts.connection.call(say(hosts, "liar", (("style", digest),)))
    model.load_hosted_adapter("style")
    expected = tokens_of(by_peft(local, adapters / "lora"))
    assert [tokens_of(model) for _ in range(3)] == [expected] * 3
    assert hosts.opened("liar") == 0


async def say(hosts: Hosts, name: str, adapters: tuple[tuple[str, str], ...]) -> None:
    hosts.memory.announce(name, Span(0, 4), adapters=adapters)


def test_two_adapters_and_none_at_once(
    hosts: Hosts, folder: Path, tmp_path: Path, local: PreTrainedModel, adapters: Path
) -> None:
    hosts.add("whole", 0, 4, style=adapters / "lora", tone=adapters / "ia3")
    here: list[Any] = [local, by_peft(local, adapters / "lora"), by_peft(local, adapters / "ia3")]
    there = [
        SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=hosts.connection, adapter=name)
        for name in (None, "style", "tone")
    ]
    expected = [tokens_of(model, LONG) for model in here]
    with ThreadPoolExecutor(len(there)) as pool:  # prompts longer than a page, which sessions may share
        assert list(pool.map(lambda model: tokens_of(model, LONG), there * 2)) == expected * 2


def test_adapters_are_chosen_in_pefts_words(
    hosts: Hosts, model: SwarmModelForCausalLM, local: PreTrainedModel, adapters: Path
) -> None:
    hosts.add("whole", 0, 4, style=adapters / "lora", tone=adapters / "ia3")
    expected = {kind: tokens_of(by_peft(local, adapters / kind)) for kind in ("lora", "ia3")}
    with pytest.raises(UsageError, match="no adapter 'style' is loaded"):
        model.set_adapter("style")
    for name in ("style", "tone"):
        model.load_hosted_adapter(name)
    assert tokens_of(model) == expected["ia3"]
    model.set_adapter("style")
    assert tokens_of(model) == expected["lora"]
    model.disable_adapters()
    assert model.active_adapters() == []
    assert tokens_of(model) == tokens_of(local)


def test_what_cannot_be_with_a_hosted_adapter_says_so(
    hosts: Hosts, model: SwarmModelForCausalLM, adapters: Path
) -> None:
    hosts.add("whole", 0, 4, style=adapters / "lora")
    with pytest.raises(UsageError, match="no peer hosts an adapter called 'tone'; hosted are: style"):
        model.load_hosted_adapter("tone")
    with model.new_cache() as cache:
        tokens_of(model, past_key_values=cache)
        model.load_hosted_adapter("style")
        with pytest.raises(UsageError, match="another adapter"):
            model.generate(torch.cat([PROMPT, PROMPT], 1), past_key_values=cache, **NEW)
    hidden = torch.zeros(1, 2, 64, requires_grad=True)
    with pytest.raises(UsageError, match=r"gradients and prefixes don't go through style@"):
        model(inputs_embeds=hidden)
    tuned = adapted(model, SOME).eval()
    with pytest.raises(UsageError, match="one of your own are both active"):
        tokens_of(tuned)
    with tuned.disable_adapter():
        tokens_of(tuned)
