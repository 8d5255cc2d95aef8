"""A tiny model of each family, whole in this process, and the same behind a connection that stands in for a swarm."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from clients.completion.shared import SharedModel
from clients.model import SwarmModelForCausalLM
from tests.clients.local_session import LocalConnection
from tests.clients.text_model import save_text_model
from tests.models import tiny_model


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> str:
    """Which tiny model; tests ask for others by parametrizing it, indirectly."""
    return str(getattr(request, "param", "llama"))


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def local(folder: Path) -> PreTrainedModel:
    """The reference."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return model.eval()


@pytest.fixture
def connection(folder: Path, tmp_path: Path) -> Iterator[LocalConnection]:
    connection = LocalConnection(folder, tmp_path)
    yield connection
    connection.close()


@pytest.fixture
def model(folder: Path, tmp_path: Path, connection: LocalConnection) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=connection) as model:
        yield model


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has a real tokenizer and a chat template."""
    return save_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture
def text_connection(text_folder: Path, tmp_path: Path) -> Iterator[LocalConnection]:
    """It counts sessions and steps, and can make steps wait."""
    connection = LocalConnection(text_folder, tmp_path)
    yield connection
    connection.close()


@pytest.fixture
def text_model(text_folder: Path, tmp_path: Path, text_connection: LocalConnection) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM.from_pretrained(text_folder, cache=tmp_path, connection=text_connection) as model:
        yield model


@pytest.fixture
async def text_shared(text_model: SwarmModelForCausalLM) -> AsyncIterator[SharedModel]:
    """The same for many requests at once."""
    async with SharedModel(text_model) as shared:
        yield shared
