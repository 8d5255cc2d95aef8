"""A live gateway in a process of its own, over three real peers, for clients that are not ours.

It serves two models: one that three peers hold together, and one that nobody holds.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from clients.local_gateway import GatewayProcess
from clients.local_swarm import LocalSwarm
from swarm.catalogue import default_cache
from swarm.checkpoint import Checkpoint, resolve
from tests.clients.gateway.bytes_tokenizer import VOCAB, save_tokenizer
from tests.models import tiny_model

MODEL = "smollm2"
NOBODYS = "nobodys"  # the model that no peer holds
SPANS = ("0:10", "10:20", "20:30")
KV_TOKENS = 16_384  # of each peer
KEY = "sk-conformance-of-many-clients"
SCARCE_KEY = "sk-conformance-one-request-a-minute"
QUESTION = "What is the capital of France?"
PEER_SECONDS = 100.0


@pytest.fixture(scope="session")
def cache() -> Path:
    return default_cache(os.environ)


@pytest.fixture(scope="session")
def checkpoint(cache: Path) -> Checkpoint:
    return resolve(MODEL, cache=cache)


@dataclass(frozen=True)
class Local:
    """The reference: the same model in this process."""

    model: PreTrainedModel
    tokenizer: Any

    def prompt(self, *turns: str) -> torch.Tensor:
        """The tokens [1, n] of a chat in which user and assistant take turns."""
        roles = ("user", "assistant")
        messages = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids

    def tokens(self, prompt: torch.Tensor, new: int) -> list[int]:
        """Of the greedy answer."""
        out = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False)
        return out[0, prompt.shape[1] :].tolist()

    def answer(self, *turns: str, new: int) -> str:
        return self.tokenizer.decode(self.tokens(self.prompt(*turns), new), skip_special_tokens=True)


@pytest.fixture(scope="session")
def local(checkpoint: Checkpoint) -> Local:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    model.generation_config.do_sample = False
    model.generation_config.temperature = model.generation_config.top_p = model.generation_config.top_k = None
    return Local(model.eval(), AutoTokenizer.from_pretrained(checkpoint.folder))


@pytest.fixture(scope="package")
def swarm(cache: Path) -> Iterator[LocalSwarm]:
    """Three peers that hold a third of SmolLM2 each."""
    with LocalSwarm(MODEL, cache) as swarm:
        for number, span in enumerate(SPANS):
            swarm.start(f"peer{number}", "--blocks", span, "--host", "127.0.0.1", "--kv-cache-tokens", str(KV_TOKENS))
            if number == 0:
                swarm.peers[0].wait_ready(PEER_SECONDS)  # the others need somebody to join
        swarm.wait_ready()
        yield swarm


@pytest.fixture(scope="package")
def options(swarm: LocalSwarm, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What follows `swarm gateway`, without a port."""
    folder = tmp_path_factory.mktemp("gateway")
    tiny_model("llama", folder / NOBODYS, vocab_size=VOCAB)
    save_tokenizer(folder / NOBODYS)
    keys = folder / "keys"
    keys.write_text(f"{KEY} name=tests\n{SCARCE_KEY} name=scarce requests=1\n")
    way_in = ("--initial-peers", ",".join(swarm.addresses), "--cache-dir", str(cache))
    return [MODEL, str(folder / NOBODYS), *way_in, "--api-key", str(keys), "--patience", "20"]


class Door:
    """A gateway that can be started again where it was. `process` is the one that runs."""

    def __init__(self, options: Sequence[str]) -> None:
        self._options = options
        self.process = GatewayProcess([*options, "--port", "0"])
        self._stack = ExitStack()
        self._stack.enter_context(self.process)
        ready = self.process.wait_ready()
        self.url, self.base_url, self._port = ready.url, ready.base_url, ready.port

    def kill(self) -> None:
        """SIGKILL; it is dead when this returns."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        self.process = self._stack.enter_context(GatewayProcess([*self._options, "--port", str(self._port)]))
        self.process.wait_ready()

    def metric(self, name: str, **labels: str) -> float:
        return self.process.metric(name, **labels)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="package")
def gateway(options: list[str]) -> Iterator[Door]:
    with closing(Door(options)) as door:
        yield door


@pytest.fixture(scope="package")
def base_url(gateway: Door) -> str:
    """What OpenAI's clients are given."""
    return gateway.base_url
