"""A chat with an adapter of this machine, and what `run`, `chat` and `gateway` say of one that is none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from clients.chat import encode_chat
from clients.model import SwarmModelForCausalLM
from clients.own_adapter import Choice, read_adapter
from clients.terminal.backend import Text, Wanted
from clients.terminal.conversation import Choosing, Conversation
from clients.terminal.joined import Joined
from swarm.checkpoint import resolve
from swarm.cli import run
from swarm.errors import UsageError
from tests.clients.test_engines import Swarm
from tests.clients.training.adapted import adapted
from tests.models import tiny_model

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWAqFUaDYFnqfKAmeN9TXLNdLq6xAWj1h63mwA4c79VYFS"
NEW = 9


@pytest.fixture(scope="module")
def tuned(text_folder: Path) -> Any:
    """PEFT's model, whole in this process."""
    return adapted(AutoModelForCausalLM.from_pretrained(text_folder, dtype=torch.float32), LORA).eval()


@pytest.fixture(scope="module")
def saved(tuned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture
def model(text_folder: Path, tmp_path: Path) -> Iterator[SwarmModelForCausalLM]:
    swarm = Swarm(text_folder, tmp_path, (1,))
    with SwarmModelForCausalLM.from_pretrained(text_folder, cache=tmp_path, connection=swarm.connection) as model:
        model.generation_config.eos_token_id = None  # a random model must not end early
        yield model
    swarm.connection.close()


def test_a_chat_with_an_adapter_says_what_peft_says(
    model: SwarmModelForCausalLM, tuned: Any, saved: Path, text_folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    adapters = read_adapter(str(saved), resolve(str(text_folder), cache=tmp_path), cache=tmp_path).blocks
    joined = Joined("tiny:own", model, tokenizer, adapters)
    chat = Conversation().asked("Who are you?")
    for question in ("And now?", ""):
        happenings = list(joined.answer(chat.messages, Choosing(temperature=0, max_new_tokens=NEW)))
        text = "".join(one.text for one in happenings if isinstance(one, Text))
        ids = encode_chat(tokenizer, [(message.role, message.content) for message in chat.messages])
        options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
        expected = tuned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        assert text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
        chat = chat.answered(text).asked(question)


def test_a_cache_keeps_the_adapters_that_it_was_made_with(
    model: SwarmModelForCausalLM, tuned: Any, saved: Path, text_folder: Path, tmp_path: Path
) -> None:
    adapters = read_adapter(str(saved), resolve(str(text_folder), cache=tmp_path), cache=tmp_path).blocks
    prompt, options = torch.arange(5, 25)[None], {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    with model.new_cache(adapters=adapters) as cache:
        with torch.no_grad():
            torch.testing.assert_close(
                model(prompt, past_key_values=cache).logits, tuned(prompt).logits, atol=1e-4, rtol=1e-4
            )
        other = adapted(model, LoraConfig(r=2, target_modules=["k_proj"], task_type="CAUSAL_LM")).eval()
        with pytest.raises(UsageError, match="made with another adapter"):
            other.generate(input_ids=torch.cat([prompt, prompt], 1), past_key_values=cache, **options)


def test_what_is_no_folder_is_looked_for_at_the_peers(
    model: SwarmModelForCausalLM, text_folder: Path, tmp_path: Path
) -> None:
    choice = Choice("pirate@00ff", str(text_folder), cache=tmp_path)
    with pytest.raises(UsageError, match="no folder 'pirate@00ff' here, and no peer hosts an adapter called 'pirate'"):
        choice.load(model)
    assert choice.blocks is None


def test_an_adapter_has_a_name_beside_that_of_its_model() -> None:
    assert Wanted("smollm2").name == "smollm2"
    assert Wanted("smollm2", "somewhere/my-run/").name == "smollm2:my-run"
    assert Wanted("smollm2", "org/pirate").name == "smollm2:pirate"


def prefix(folder: Path, text_folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(text_folder)
    get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


def foreign(folder: Path, _: Path) -> Path:
    other = AutoModelForCausalLM.from_pretrained(tiny_model("llama", folder / "other", hidden_size=32))
    adapted(other, LORA).save_pretrained(folder)
    return folder


def empty(folder: Path, _: Path) -> Path:
    return folder


def absent(folder: Path, _: Path) -> Path:
    return folder / "nowhere"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (prefix, "of type PREFIX_TUNING: peers take LORA and IA3"),
        (foreign, "of another model"),
        (empty, "has no adapter_config.json"),
        (absent, "there is no adapter"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused_before_anybody_is_asked(
    make: Any, said: str, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = make(tmp_path, text_folder)
    peers = ["--initial-peers", NOBODY, "--cache-dir", str(tmp_path / "cache")]
    commands = (
        ["run", str(text_folder), "Hi", "--adapter", str(given)],
        ["chat", str(text_folder), "--adapter", str(given)],
        ["gateway", str(text_folder), "--port", "0", "--adapter", f"own={given}"],
    )
    capsys.readouterr()
    for command in commands:
        assert run([*command, *peers]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1


def test_a_gateway_is_asked_for_its_own_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["run", "tiny", "Hi"], ["chat", "tiny"]):
        assert run([*command, "--url", "http://127.0.0.1:1/v1", "--adapter", "somewhere"]) == 2
        assert "as in smollm2:NAME" in capsys.readouterr().err
