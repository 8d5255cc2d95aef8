"""One real swarm for all of these tests (a peer takes seconds to start), and the whole model in this process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from clients.model import SwarmModelForCausalLM
from swarm.catalogue import default_cache
from swarm.checkpoint import Checkpoint, resolve
from swarm.ids import Span
from tests.real.herd import Herd
from tests.real.prompts import Text

SPANS = (Span(0, 10), Span(10, 20), Span(20, 30))
MIDDLE = SPANS[1]


@pytest.fixture(scope="session")
def cache() -> Path:
    return default_cache(os.environ)


@pytest.fixture(scope="session")
def checkpoint(cache: Path) -> Checkpoint:
    return resolve("smollm2", cache=cache)


@pytest.fixture(scope="session")
def local(checkpoint: Checkpoint) -> PreTrainedModel:
    """The reference."""
    torch.set_num_threads(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def text(checkpoint: Checkpoint) -> Text:
    return Text(AutoTokenizer.from_pretrained(checkpoint.folder))


@pytest.fixture(scope="package")
def herd(checkpoint: Checkpoint, cache: Path) -> Iterator[Herd]:
    """Three peers, ten blocks each, and a spare for the middle; at the end nothing of them may be left."""
    with Herd(checkpoint, cache) as herd:
        herd.ensure({**dict.fromkeys(SPANS, 1), MIDDLE: 2})
        yield herd
        folders = [process.temporary for process in herd.swarm.peers]
    assert herd.left_behind() == []
    assert [folder for folder in folders if folder.exists()] == []


@pytest.fixture(scope="package")
def model(herd: Herd) -> Iterator[SwarmModelForCausalLM]:
    """A client's model that tests share."""
    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, patience=90.0
    ) as model:
        yield model
