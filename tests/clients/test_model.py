"""The model's face to the library: what is local is the library's, what is remote goes through a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from clients.model import SwarmModelForCausalLM
from tests.clients.local_session import LocalConnection
from tests.models import FAMILIES, tiny_model

PROMPTS = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [0, 20, 21, 22, 23, 24]])
LEFT = (PROMPTS != 0).long()


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_model(request.param, tmp_path)


@pytest.fixture
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwarmModelForCausalLM]:
    cache = tmp_path_factory.mktemp("cache")
    connection = LocalConnection(folder, cache)
    with SwarmModelForCausalLM.from_pretrained(folder, cache=cache, connection=connection) as model:
        yield model
    connection.close()


@pytest.fixture
def local(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_logits_equal_local(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    ids = torch.arange(3, 33).reshape(2, 15)
    torch.testing.assert_close(model(ids).logits, local(ids).logits)
