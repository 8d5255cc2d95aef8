"""A tiny model whole in this process, and the same over real engines in memory, with spares."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.model import SwarmModelForCausalLM
from tests.clients.test_engines import Swarm


@pytest.fixture
def swarm(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Swarm]:
    """As a parameter: who takes no part in training."""
    swarm = Swarm(folder, tmp_path, (1, 3), getattr(request, "param", ()))
    yield swarm
    swarm.connection.close()


@pytest.fixture
def model(swarm: Swarm, folder: Path, tmp_path: Path) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=swarm.connection) as model:
        yield model
