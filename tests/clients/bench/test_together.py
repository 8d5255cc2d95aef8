"""Several clients that train at once: how their figures are summed up, and what they are held to."""

import subprocess
import sys
from pathlib import Path

import pytest

from clients.bench.quota import Quotas
from clients.bench.together import STEPS, Turn, sum_up
from clients.bench.trial import TrainTrial
from swarm.errors import UsageError

TRIAL = TrainTrial(
    model="tiny",
    cache=Path("cache"),
    peers=4,
    threads=1,
    peer_threads=1,
    client_threads=1,
    rows=2,
    length=50,
    rounds=2,
    clients=2,
)


def test_clients_at_once_are_compared_turn_by_turn() -> None:
    values, _ = sum_up(TRIAL, [Turn(alone=1.0, together=1.0), Turn(alone=2.0, together=4.0)])
    assert values["tokens_per_second"]["one"]["high"] == 100 * STEPS
    assert values["tokens_per_second"]["all"]["high"] == 2 * 100 * STEPS
    assert (values["over_one"]["high"], values["over_one"]["low"]) == (2.0, 1.0)


def test_a_process_that_is_gone_is_held_to_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(UsageError, match="--cores-each"), Quotas([process.pid], 0.5):
        pass
