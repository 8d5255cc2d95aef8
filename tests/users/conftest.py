"""Swarms as a new user may meet them: one without anybody in it, and one with a single small peer."""

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from swarm.subprocesses import ServeProcess
from tests.models import tiny_model
from tests.processes import ServePeer
from tests.users.bystander import Bystander


@pytest.fixture(autouse=True)
def person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Somebody without settings of their own; what a command does to this process's log is undone."""
    for name in [name for name in os.environ if name.startswith("SWARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    root, show = logging.getLogger(), warnings.showwarning
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    warnings.showwarning = show


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of four blocks, a context of 1024 tokens and a tokenizer that knows five words."""
    folder = tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")
    words = {word: number for number, word in enumerate(("<unk>", "<s>", "</s>", "one", "two"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def nobody() -> Iterator[Bystander]:
    """A member of a swarm in which nobody serves anything."""
    with Bystander() as bystander:
        yield bystander


@pytest.fixture(scope="session")
def peer(model: Path, cache: Path) -> Iterator[ServeProcess]:
    """One that serves all of the tiny model, with KV for twenty rows of 32 tokens."""
    with ServePeer(model, "--cache-dir", str(cache), "--kv-cache-tokens", "640", "--public-name", "ada") as peer:
        peer.wait_ready()
        yield peer
