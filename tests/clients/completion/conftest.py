"""A tiny model behind the connection that stands in for a swarm, shared by many requests."""

from collections.abc import AsyncIterator

import pytest

from clients.completion.shared import SharedModel
from clients.model import SwarmModelForCausalLM


@pytest.fixture
async def shared(model: SwarmModelForCausalLM) -> AsyncIterator[SharedModel]:
    async with SharedModel(model) as shared:
        yield shared
