"""A swarm that is parted and whole again, and a peer that sleeps: how long until everybody is seen by everybody.

Four real peers on hosts of their own, and `swarm status` asked of one on each side.
"""

import json
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pytest

from tests.models import tiny_model
from tests.processes import ServePeer
from tests.wan.conftest import able
from tests.wan.wan import Host, Link, Wan

__all__ = ["able"]

NAMES = ("a0", "a1", "b0", "b1")
DELAY = 0.02  # s, one way
LOST_SECONDS = 120.0  # until records of those who can't be heard have run out; they live for a minute
HEALED_SECONDS = 120.0  # docs/hosting.md says about a minute
WOKEN_SECONDS = 30.0  # it says five seconds until a peer that wakes announces itself

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@dataclass(frozen=True, slots=True)
class Place:
    """Two peers on each side, by name."""

    wan: Wan
    hosts: dict[str, Host]
    peers: dict[str, ServePeer]

    def seen_by(self, name: str) -> set[str]:
        """The peers that somebody on that peer's host is told of."""
        entry = ["--initial-peers", self.peers[name].addresses[0]]
        said = self.hosts[name].run([sys.executable, "-m", "swarm", "status", "--json", *entry])
        return {peer["public_name"] for model in json.loads(said)["models"] for peer in model["peers"]}

    def seconds_until(self, expected: dict[str, Collection[str]], limit: float) -> float:
        """What it takes until each of these peers tells of those and no others. Fails after `limit`."""
        began = time.monotonic()
        while not all(self.seen_by(name) == set(seen) for name, seen in expected.items()):
            assert time.monotonic() - began < limit, f"not within {limit:.0f} s"
        return time.monotonic() - began


@pytest.fixture(scope="module")
def place(able: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")
    common = ("--cache-dir", str(tmp_path_factory.mktemp("cache")), "--kv-cache-tokens", "256")
    peers: dict[str, ServePeer] = {}
    with Wan(Link(delay=DELAY)) as wan:
        hosts = {name: wan.host(name) for name in NAMES}
        try:
            for name, host in hosts.items():
                named = (*common, "--public-name", name)
                joins = {"join": list(peers.values())[:1], "host": host.address, "prefix": host.prefix}
                peers[name] = ServePeer(folder, *named, blocks="0:4", name=name, **joins)
                peers[name].wait_ready()
            yield Place(wan, hosts, peers)
        finally:
            for peer in peers.values():
                peer.close()


def test_sides_of_a_parted_network_find_each_other_again(place: Place, figures: list[str]) -> None:
    one, other = NAMES[:2], NAMES[2:]
    place.seconds_until(dict.fromkeys(("a0", "b1"), NAMES), LOST_SECONDS)
    place.wan.partition([place.hosts[name] for name in one], [place.hosts[name] for name in other])
    try:
        parted = place.seconds_until({"a0": one, "a1": one, "b0": other, "b1": other}, LOST_SECONDS)
    finally:
        place.wan.heal()
    healed = place.seconds_until(dict.fromkeys(NAMES, NAMES), HEALED_SECONDS)
    figures.append(
        f"a network that parts: each side alone in the directory after {parted:.0f} s, all of it again {healed:.0f} s "
        "after it healed"
    )


def test_peer_that_slept_is_back_soon_after_it_wakes(place: Place, figures: list[str]) -> None:
    sleeper, others = place.peers["b1"], [name for name in NAMES if name != "b1"]
    place.seconds_until({"a0": NAMES}, HEALED_SECONDS)
    sleeper.stop()
    try:
        gone = place.seconds_until({"a0": others}, LOST_SECONDS)
    finally:
        sleeper.resume()
    back = place.seconds_until({"a0": NAMES}, WOKEN_SECONDS)
    figures.append(f"a peer that sleeps: gone from the directory after {gone:.0f} s, back {back:.0f} s after it woke")
