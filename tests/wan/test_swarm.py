"""Real peers, each on a host of its own, and a client on another: over distances, and through a partition."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList, PreTrainedModel

from clients.events import PeerLost, Waiting
from clients.model import SwarmModelForCausalLM
from tests.models import tiny_model
from tests.processes import ServePeer
from tests.real.prompts import answers, options
from tests.real.watching import AtToken, Watch
from tests.wan.wan import Host, Link, Wan

PROMPT = {"input_ids": torch.arange(3, 40)[None], "attention_mask": torch.ones(1, 37).long()}
NEW = 8
PART_AT = 3  # the token before which the network parts
DELAY = 0.02  # s, one way, between any two hosts
PATIENCE = 60.0

# Two peers start one after the other, on a machine that may be busy.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tests are: two peers with half of the model each, and a host for clients, behind NAT."""

    wan: Wan
    servers: tuple[Host, ...]
    home: Host
    peers: tuple[ServePeer, ...]
    folder: Path
    cache: Path

    def model(self, watch: Watch) -> SwarmModelForCausalLM:
        with self.home.inside():
            return SwarmModelForCausalLM.from_pretrained(
                self.folder,
                initial_peers=[address for peer in self.peers for address in peer.addresses],
                cache=self.cache,
                patience=PATIENCE,
                observer=watch.hear,
            )


@pytest.fixture(scope="module")
def place(able: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")
    cache = tmp_path_factory.mktemp("cache")
    common = ("--cache-dir", str(cache), "--kv-cache-tokens", "1024")
    with Wan(Link(delay=DELAY)) as wan:
        one, two, home = wan.host("one"), wan.host("two"), wan.host("home", nat=True)
        with ServePeer(folder, *common, blocks="0:2", name="one", host=one.address, prefix=one.prefix) as first:
            first.wait_ready()
            joins = {"join": [first], "host": two.address, "prefix": two.prefix}
            with ServePeer(folder, *common, blocks="2:4", name="two", **joins) as second:
                second.wait_ready()
                yield Place(wan, (one, two), home, (first, second), folder, cache)


@pytest.fixture(scope="module")
def local(place: Place) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place.folder, dtype=torch.float32)
    return model.eval()


def test_tokens_over_distances_are_those_of_one_process(place: Place, local: PreTrainedModel) -> None:
    watch, before = Watch(), AtToken()
    with place.model(watch) as model:
        ours = answers(model, PROMPT, logits_processor=LogitsProcessorList([before]), **options("greedy", NEW))
    assert ours == answers(local, PROMPT, **options("greedy", NEW))
    assert watch.chain == tuple(peer.peer_id for peer in place.peers)
    # a token goes around: to the first peer, to the second, and back
    assert before.times[-1] - before.times[0] >= (NEW - 1) * 3 * DELAY


def test_answer_goes_on_when_a_partition_in_mid_answer_has_healed(place: Place, local: PreTrainedModel) -> None:
    def part() -> None:
        place.wan.partition([place.home], place.servers)

    def heal_once_noticed(event: object) -> None:
        if isinstance(event, PeerLost | Waiting):
            place.wan.heal()

    watch = Watch(heal_once_noticed)
    before = AtToken(PART_AT, part)
    with place.model(watch) as model:
        try:
            ours = answers(model, PROMPT, logits_processor=LogitsProcessorList([before]), **options("greedy", NEW))
        finally:
            place.wan.heal()
    assert ours == answers(local, PROMPT, **options("greedy", NEW))
    assert watch.losses or watch.waiting.is_set(), "nobody noticed"
    assert place.wan.counts()["parted"] > 0
