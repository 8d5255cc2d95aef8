"""A tiny model of each family, whole in this process, and the same behind a connection that stands in for a swarm."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from clients.model import SwarmModelForCausalLM
from tests.clients.local_session import LocalConnection
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
