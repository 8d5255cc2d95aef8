"""Memory of real processes: the weights that they need, and a constant that docs/performance.md names."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from peers.span_memory import span_bytes
from swarm.catalogue import default_cache
from swarm.checkpoint import Checkpoint, resolve
from swarm.ids import Span
from tests.processes import ServePeer

MIB = 1 << 20
CONSTANT = 640 * MIB  # private memory of a peer's three processes, without weights and KV
CLIENT = 300 * MIB  # private memory of a client, without embeddings and head
SLACK = 1.3

# The client says how much it keeps of the model and how much private memory its process has.
ASK = """
import sys, psutil, torch
from clients.model import SwarmModelForCausalLM
with SwarmModelForCausalLM.from_pretrained("smollm2", initial_peers=[sys.argv[1]]) as model:
    model.generate(torch.randint(3, 1000, (1, 200)), max_new_tokens=10, do_sample=False)
    print(model.get_memory_footprint(), psutil.Process().memory_full_info().uss)
"""


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    return resolve("smollm2", cache=default_cache(os.environ))


@pytest.fixture(scope="module")
def whole(smollm2: Checkpoint) -> Iterator[ServePeer]:
    with ServePeer("smollm2", "--kv-cache-tokens", "4096") as peer:
        peer.wait_ready()
        yield peer


def private(peer: ServePeer) -> int:
    return sum(process.memory_full_info().uss for process in peer.family())


def test_peer_takes_its_weights_and_a_constant(smollm2: Checkpoint, whole: ServePeer) -> None:
    weights = span_bytes(smollm2, Span(0, smollm2.num_blocks), torch.float32)
    assert weights < private(whole) < weights + SLACK * CONSTANT


@pytest.mark.soak
def test_peer_of_fewer_blocks_takes_less_by_their_weights(
    smollm2: Checkpoint, whole: ServePeer, tmp_path: Path
) -> None:
    with ServePeer("smollm2", "--kv-cache-tokens", "4096", blocks="0:10") as part:
        part.wait_ready()
        spared = span_bytes(smollm2, Span(10, smollm2.num_blocks), torch.float32)
        assert private(whole) - private(part) > spared / SLACK


def test_client_takes_embeddings_and_head_and_a_constant(smollm2: Checkpoint, whole: ServePeer) -> None:
    command = [sys.executable, "-c", ASK, whole.addresses[0]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=environment)
    kept, taken = map(int, done.stdout.split())
    embeddings = smollm2.config.vocab_size * smollm2.hidden_size * torch.float32.itemsize
    assert kept < 2 * embeddings + MIB  # the head, which is tied, has a copy that is faster to multiply with
    assert taken < kept + SLACK * CLIENT
