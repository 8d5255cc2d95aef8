"""Which of the models that strangers announce a gateway serves without being asked to."""

import os
from dataclasses import replace

import pytest

from clients.gateway.joining import choose_models
from swarm.catalogue import default_cache
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import UsageError
from swarm.ids import Digest, Span
from swarm.record import PeerRecord
from tests.clients.gateway.live import record

CACHE = default_cache(os.environ)
OTHER = Digest("cd" * 32)


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    """It needs no download."""
    return resolve("smollm2", cache=CACHE)


def announced(name: str, digest: Digest, peers: int = 1) -> list[PeerRecord]:
    return [replace(record(f"{name}-{number}", Span(0, 4)), model_name=name, model=digest) for number in range(peers)]


def test_what_this_machine_has_is_served(smollm2: Checkpoint) -> None:
    records = [*announced("somebody/elses", OTHER, peers=3), *announced("smollm2", smollm2.digest)]
    assert choose_models(records, CACHE) == ("smollm2",)


def test_other_weights_of_the_same_name_are_not(smollm2: Checkpoint) -> None:
    with pytest.raises(UsageError, match="This swarm serves smollm2, of which this machine has none"):
        choose_models(announced("smollm2", OTHER, peers=9), CACHE)
    both = [*announced("smollm2", OTHER, peers=9), *announced("smollm2", smollm2.digest)]
    assert choose_models(both, CACHE) == ("smollm2",)


@pytest.mark.parametrize("name", ["/etc", "../models", "tests", "no/such-model-anywhere"])
def test_strangers_names_are_neither_opened_nor_fetched(name: str) -> None:
    with pytest.raises(UsageError, match="name the models to serve"):
        choose_models(announced(name, OTHER), CACHE)


def test_an_empty_swarm_is_said() -> None:
    with pytest.raises(UsageError, match="This swarm serves nothing"):
        choose_models([], CACHE)
