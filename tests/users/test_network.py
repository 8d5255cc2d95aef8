"""One presence in a swarm, shared by several models."""

import os
from pathlib import Path

import psutil
import pytest
import torch

from clients.model import SwarmModelForCausalLM
from clients.network import Network
from swarm.catalogue import default_cache
from swarm.checkpoint import resolve
from swarm.errors import NetworkError
from swarm.subprocesses import ServeProcess
from tests.users.bystander import Bystander

LIMIT = 30.0  # seconds


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


def test_the_end_of_the_daemon_is_told(nobody: Bystander) -> None:
    before = set(psutil.Process().children())
    with Network([nobody.address]) as network:
        ended = network.ended()
        (daemon,) = [child for child in psutil.Process().children() if child not in before]
        daemon.kill()
        ended.result(LIMIT)
        with pytest.raises(NetworkError, match="the libp2p daemon of this process has ended"):
            network.connect(resolve("smollm2", cache=default_cache(os.environ)))
