"""A tiny model with a tokenizer over real engines in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from clients.model import SwarmModelForCausalLM
from tests.clients.test_engines import Swarm


@pytest.fixture
def swarm(text_folder: Path, tmp_path: Path) -> Iterator[Swarm]:
    swarm = Swarm(text_folder, tmp_path, (1,))
    yield swarm
    swarm.connection.close()


@pytest.fixture
def model(swarm: Swarm, text_folder: Path, tmp_path: Path) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM.from_pretrained(text_folder, cache=tmp_path, connection=swarm.connection) as model:
        yield model


@pytest.fixture(scope="session")
def tokenizer(text_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(text_folder)
