"""A client that has the choice between a peer next door and others far away: real peers on hosts of their own."""

import pytest

from clients.model import SwarmModelForCausalLM
from tests.models import tiny_model
from tests.processes import ServePeer
from tests.real.prompts import answers, options
from tests.real.watching import Watch
from tests.wan.test_swarm import PROMPT
from tests.wan.wan import Link, Wan

AWAY = {"far": 0.12, "near": 0.015, "farther": 0.2}  # s, one way
CLIENTS = 3

# Three peers start one after the other, on a machine that may be busy.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]


def test_clients_take_the_peer_next_door(able: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")
    cache = tmp_path_factory.mktemp("cache")
    peers: dict[str, ServePeer] = {}
    with Wan(Link()) as wan:
        home = wan.host("home")
        try:
            for name, away in AWAY.items():
                host = wan.host(name)
                wan.link(home, host, Link(delay=away))
                named = ("--cache-dir", str(cache), "--kv-cache-tokens", "1024", "--public-name", name)
                joins = {"join": list(peers.values())[:1], "host": host.address, "prefix": host.prefix}
                peers[name] = ServePeer(folder, *named, blocks="0:4", name=name, **joins)
                peers[name].wait_ready()
            for _ in range(CLIENTS):
                watch = Watch()
                with home.inside():
                    model = SwarmModelForCausalLM.from_pretrained(
                        folder, initial_peers=peers["far"].addresses, cache=cache, observer=watch.hear
                    )
                with model:
                    answers(model, PROMPT, **options("greedy", 2))
                assert watch.chain == (peers["near"].peer_id,)
        finally:
            for peer in peers.values():
                peer.close()
