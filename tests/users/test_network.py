"""One presence in a swarm, shared by several models."""

from pathlib import Path

import pytest
import torch

from clients.model import SwarmModelForCausalLM
from clients.network import Network
from swarm.errors import NetworkError
from swarm.subprocesses import ServeProcess


def test_models_share_a_presence_and_end_one_by_one(model: Path, cache: Path, peer: ServeProcess) -> None:
    prompt = torch.tensor([[3, 4]])
    with Network(peer.ready.addresses) as network:
        assert [record.model_name for record in network.records()] == ["tiny"]
        with SwarmModelForCausalLM.from_pretrained(model, network=network, cache=cache) as one:
            with SwarmModelForCausalLM.from_pretrained(model, network=network, cache=cache) as two:
                answers = [each.generate(prompt, max_new_tokens=4).tolist() for each in (one, two)]
                assert answers[0] == answers[1]
            assert one.generate(prompt, max_new_tokens=4).tolist() == answers[0]
            assert not network.ended().done()
    with pytest.raises(NetworkError, match="closed"):
        network.records()
