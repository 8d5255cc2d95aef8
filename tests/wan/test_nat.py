"""Peers that nobody can dial: they serve through a relay, a client that can't be dialled either uses them, and all of
them are shown as what they are."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList

from clients.model import SwarmModelForCausalLM
from swarm.entrance import is_relayed
from tests.models import tiny_model
from tests.processes import ServePeer
from tests.real.prompts import answers, options
from tests.real.watching import AtToken, Watch
from tests.wan.wan import Host, Link, Wan

PROMPT = {"input_ids": torch.arange(3, 40)[None], "attention_mask": torch.ones(1, 37).long()}
NEW = 8
DELAY = 0.02  # s, one way, between any two hosts
PATIENCE = 60.0

# Three peers start one after the other, on a machine that may be busy, and two of them look for a relay.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True)
class Homes:
    """One peer that anybody can dial, and two behind NAT that have half of the model each; so is `client`."""

    wan: Wan
    relay: ServePeer
    served: tuple[ServePeer, ServePeer]
    client: Host
    folder: Path
    cache: Path


@pytest.fixture(scope="module")
def homes(able: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homes]:
    folder = tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")
    cache = tmp_path_factory.mktemp("cache")
    common = ("--cache-dir", str(cache), "--kv-cache-tokens", "1024")
    with Wan(Link(delay=DELAY)) as wan:
        open_to_all = wan.host("open to all")
        one, two, client = (wan.host(name, nat=True) for name in ("one", "two", "client"))
        on = {host: {"host": host.address, "prefix": host.prefix} for host in (open_to_all, one, two)}
        with ServePeer(folder, *common, blocks="3:4", name="relay", **on[open_to_all]) as relay:
            relay.wait_ready()
            with (
                ServePeer(folder, *common, blocks="0:2", name="one", join=[relay], **on[one]) as first,
                ServePeer(folder, *common, blocks="2:4", name="two", join=[relay], **on[two]) as second,
            ):
                first.wait_ready()
                second.wait_ready()
                yield Homes(wan, relay, (first, second), client, folder, cache)


def test_peers_behind_nat_find_out_and_are_shown_as_relayed(homes: Homes) -> None:
    assert not is_relayed(homes.relay.addresses)
    assert [is_relayed(peer.addresses) for peer in homes.served] == [True, True]
    entry = ["--initial-peers", homes.relay.addresses[0]]
    shown = json.loads(homes.client.run([sys.executable, "-m", "swarm", "status", "--json", *entry]))
    relayed = {peer["peer_id"]: peer["relayed"] for model in shown["models"] for peer in model["peers"]}
    assert relayed == {homes.relay.peer_id: False, **{peer.peer_id: True for peer in homes.served}}


def test_tokens_through_a_relay_are_those_of_one_process_and_take_its_way(homes: Homes) -> None:
    watch, seen = Watch(), AtToken()
    with homes.client.inside():
        model = SwarmModelForCausalLM.from_pretrained(
            homes.folder,
            initial_peers=homes.relay.addresses,
            cache=homes.cache,
            patience=PATIENCE,
            observer=watch.hear,
        )
    with model:
        ours = answers(model, PROMPT, logits_processor=LogitsProcessorList([seen]), **options("greedy", NEW))
    local = AutoModelForCausalLM.from_pretrained(homes.folder, dtype=torch.float32).eval()
    assert ours == answers(local, PROMPT, **options("greedy", NEW))
    assert watch.chain == tuple(peer.peer_id for peer in homes.served)
    # to the first peer, to the second, and back: each time to the relay, and on from there
    assert min(after - before for before, after in pairwise(seen.times)) >= 3 * 2 * DELAY
