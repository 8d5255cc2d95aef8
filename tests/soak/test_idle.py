"""A peer of the real model that nobody asks for anything, with another one in its swarm: what it takes of the machine.

SWARM_SOAK_MINUTES=60 watches it for an hour.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from swarm.checkpoint import Checkpoint
from tests.real.conftest import MIDDLE
from tests.real.herd import Herd, family

MINUTES = float(os.environ.get("SWARM_SOAK_MINUTES") or 10)
SETTLING = 30.0  # seconds after the last peer has come
MOST = 0.02  # of a core, network, daemon and device process together
GROWTH = 16 << 20  # bytes: the daemon collects its garbage now and then

pytestmark = [pytest.mark.soak, pytest.mark.timeout(int(MINUTES * 60) + 600)]


@pytest.fixture(scope="module")
def herd(checkpoint: Checkpoint, cache: Path) -> Iterator[Herd]:
    with Herd(checkpoint, cache) as herd:
        herd.ensure({MIDDLE: 2})
        yield herd
    assert herd.left_behind() == []


def test_idle_peer_takes_next_to_nothing(herd: Herd, figures: list[str]) -> None:
    families = {process.name: family(process) for process in herd.living}
    time.sleep(SETTLING)  # real time is what this is about
    begun, used = time.monotonic(), {name: spent(members) for name, members in families.items()}
    held = {name: memory(members) for name, members in families.items()}
    time.sleep(MINUTES * 60)
    seconds = time.monotonic() - begun
    shares = {name: (spent(members) - used[name]) / seconds for name, members in families.items()}
    grown = {name: memory(members) - held[name] for name, members in families.items()}
    figures += [
        f"idle for {seconds / 60:.0f} minutes, {name}: {share:.2%} of a core, "
        f"{held[name] / 1e6:.0f} MB and {grown[name] / 1e6:+.1f} since"
        for name, share in shares.items()
    ]
    assert max(shares.values()) < MOST
    assert max(grown.values()) < GROWTH


def spent(members: list[psutil.Process]) -> float:
    """Seconds of processor time so far."""
    return sum(times.user + times.system for times in (member.cpu_times() for member in members))


def memory(members: list[psutil.Process]) -> int:
    """Bytes, those that they share counted for each."""
    return sum(member.memory_info().rss for member in members)
