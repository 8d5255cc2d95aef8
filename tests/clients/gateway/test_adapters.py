"""A model with adapters and without, asked at the same time by OpenAI's and Anthropic's own clients: each answer is
what plain PEFT gives."""

import asyncio
import copy
import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from peft import IA3Config, LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from clients.gateway.adapters import AdapterOption, of_models
from clients.gateway.joining import Joined, share
from clients.model import SwarmModelForCausalLM
from clients.own_adapter import read_adapter
from swarm.checkpoint import resolve
from swarm.errors import UsageError
from tests.clients.completion.asking import greedy
from tests.clients.gateway.bytes_tokenizer import END, VOCAB, save_tokenizer
from tests.clients.gateway.live import LiveGateway
from tests.clients.test_hosted import Hosts
from tests.clients.training.adapted import adapted
from tests.models import tiny_model

CONFIGS = {
    "loud": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "scaled": IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
}
HOSTED = LoraConfig(r=2, target_modules=["k_proj", "up_proj"], task_type="CAUSAL_LM")
NAMES = ["tiny", "tiny:loud", "tiny:scaled", "tiny:common"]  # peers host the last
TEXTS = ["a question", "another one", "and the last, which is longer"]
NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that reads and writes bytes."""
    folder = tiny_model("llama", tmp_path_factory.mktemp("bytes"), vocab_size=VOCAB)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(local: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Any, Path]]:
    """PEFT's model and what it saved, by the adapter's name."""
    configs = {**CONFIGS, "common": HOSTED}
    models = {name: adapted(copy.deepcopy(local), config).eval() for name, config in configs.items()}
    folders = {name: tmp_path_factory.mktemp(name) for name in models}
    for name, model in models.items():
        model.save_pretrained(folders[name])
    return {name: (models[name], folders[name]) for name in models}


@pytest.fixture(scope="module")
def models(local: PreTrainedModel, tuned: Mapping[str, tuple[Any, Path]]) -> dict[str, Any]:
    """What each name stands for, whole in this process."""
    return {"tiny": local, **{f"tiny:{name}": model for name, (model, _) in tuned.items()}}


@pytest.fixture(scope="module")
def gateway(
    folder: Path,
    tuned: Mapping[str, tuple[Any, Path]],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveGateway]:
    """The model "tiny" and its adapters over the engines of a swarm in memory, of which some host adapters."""
    cache = tmp_path_factory.mktemp("cache")
    checkpoint = resolve(str(folder), cache=cache)
    hosts = Hosts(checkpoint)
    for start in (0, 2):
        hosts.add(f"plain{start}", start, start + 2)
        hosts.add(f"host{start}", start, start + 2, common=tuned["common"][1], loud=tuned["scaled"][1])
    hosts.connection.call(hosts.connection.client.refresh())
    adapters = {name: read_adapter(str(tuned[name][1]), checkpoint, cache=cache).blocks for name in CONFIGS}
    with (
        SwarmModelForCausalLM.from_pretrained(folder, cache=cache, connection=hosts.connection) as model,
        asyncio.Runner() as runner,
    ):
        stack = AsyncExitStack()
        shared = runner.run(share(Joined("tiny", ("org/tiny",), model, tokenizer, adapters), stack))
        with LiveGateway(shared.served, hosted={"tiny": shared.hosted}) as gateway:
            yield gateway
        runner.run(stack.aclose())
    hosts.connection.close()


@pytest.fixture(scope="module")
def client(gateway: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key="none", max_retries=0) as client:
        yield client


def answer(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int]) -> str:
    """By the whole model in this process."""
    tokens = greedy(model, tuple(prompt), NEW)
    ended = tokens.index(END) if END in tokens else NEW
    text: str = tokenizer.decode(tokens[:ended], skip_special_tokens=True)
    return text


def test_a_model_is_listed_with_its_adapters(client: openai.OpenAI) -> None:
    *listed, other = client.models.list().data
    assert [model.id for model in listed] == NAMES
    assert [model.to_dict()["parent"] for model in listed] == [None, "tiny", "tiny", "tiny"]
    assert other.id.startswith("tiny:loud@")  # this gateway has one of that name
    for name in (*NAMES, other.id, "TINY:Loud", "org/tiny:scaled", "org/tiny:common"):
        assert client.models.retrieve(name).id in (*NAMES, other.id)


def test_answers_with_and_without_adapters_at_once_are_those_of_peft(
    client: openai.OpenAI, models: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = [(name, text) for text in TEXTS for name in NAMES]

    def ask(name: str, text: str) -> tuple[str, str]:
        chunks = list(client.completions.create(model=name, prompt=text, max_tokens=NEW, temperature=0, stream=True))
        return chunks[0].model, "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda one: ask(*one), asked))
    expected = [answer(models[name], tokenizer, tokenizer.encode(text)) for name, text in asked]
    assert found == [(name, text) for (name, _), text in zip(asked, expected, strict=True)]
    assert len({*expected[:4]}) == 4


def test_an_adapter_of_peers_that_is_called_as_one_of_ours_has_its_digest(
    client: openai.OpenAI, models: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    *_, other = client.models.list().data
    made = client.completions.create(model=other.id, prompt=TEXTS[0], max_tokens=NEW, temperature=0)
    assert made.choices[0].text == answer(models["tiny:scaled"], tokenizer, tokenizer.encode(TEXTS[0]))
    with pytest.raises(openai.NotFoundError, match="digest begins with 00ff"):
        client.models.retrieve("tiny:loud@00ff")


def test_chats_have_the_adapter_too_in_both_dialects(
    gateway: LiveGateway, client: openai.OpenAI, models: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    expected = answer(models["tiny:loud"], tokenizer, prompt)
    made = client.chat.completions.create(
        model="tiny:loud", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=NEW
    )
    assert made.choices[0].message.content == expected
    with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as other:
        said = other.messages.create(
            model="tiny:loud",
            messages=[{"role": "user", "content": "Hi"}],
            extra_body={"temperature": 0},
            max_tokens=NEW,
        )
        assert (said.model, said.content[0].to_dict()["text"]) == ("tiny:loud", expected)


def test_an_adapter_that_is_not_there_is_told_those_that_are(gateway: LiveGateway, client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.NotFoundError, match=r"no adapter 'quiet' here.*: tiny:loud, tiny:scaled, tiny:common"
    ) as no:
        client.completions.create(model="tiny:quiet", prompt="a")
    assert no.value.code == "model_not_found"
    with (
        anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as other,
        pytest.raises(anthropic.NotFoundError, match="tiny has no adapter 'quiet' here"),
    ):
        other.messages.create(model="tiny:quiet", messages=[{"role": "user", "content": "Hi"}], max_tokens=NEW)


def test_the_picture_has_the_model_once_under_all_its_names(gateway: LiveGateway) -> None:
    with urllib.request.urlopen(f"{gateway.url}/swarm.json") as response:
        (model,) = json.load(response)["models"]
    assert (model["id"], model["names"][:-1]) == ("tiny", NAMES)


def test_tokens_are_counted_by_adapter_and_peers_by_model(gateway: LiveGateway, client: openai.OpenAI) -> None:
    for name in ("tiny:scaled", "tiny:common"):
        client.completions.create(model=name, prompt="abc", max_tokens=2)
    with urllib.request.urlopen(f"{gateway.url}/metrics") as response:
        lines = response.read().decode().splitlines()
    assert any('prompt_tokens_total{model_name="tiny:scaled"}' in line for line in lines)
    assert not any("common" in line for line in lines)  # a name that strangers chose
    assert {line.split('"')[1] for line in lines if line.startswith("swarm:blocks_missing{")} == {"tiny"}


@pytest.mark.parametrize(
    ("options", "models", "whose"),
    [
        (["loud=x"], ["tiny"], {"tiny": [("loud", "x")]}),
        (["tiny:loud=x=y", "b:loud=z"], ["tiny", "b"], {"tiny": [("loud", "x=y")], "b": [("loud", "z")]}),
    ],
)
def test_an_option_says_whose_an_adapter_is(
    options: list[str], models: list[str], whose: dict[str, list[tuple[str, str]]]
) -> None:
    found = of_models(map(AdapterOption.parse, options), models)
    assert {model: [(one.name, one.source) for one in own] for model, own in found.items()} == whose


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["loud"], "names no folder"),
        (["loud="], "names no folder"),
        (["lo ud=x"], "no name for an adapter"),
        (["loud=x"], "whose is the adapter loud"),
        (["c:loud=x"], "which is not served here: a, b"),
        (["a:loud=x", "a:loud=y"], "go by the name loud"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_a_sentence(options: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        of_models(map(AdapterOption.parse, options), ["a", "b"])
