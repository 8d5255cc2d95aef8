"""Peers come and go by the minute: every answer is right, none fails, and nothing is left of any."""

import pytest

from swarm.checkpoint import Checkpoint
from swarm.memory import MemoryNetwork
from tests.churn import Churn
from tests.memory_swarm import MemorySwarm, Reference
from tests.virtual import run_virtual

SEED = 1


@pytest.mark.timeout(300)
def test_sessions_outlive_peers_and_leave_nothing_behind(checkpoint: Checkpoint, reference: Reference) -> None:
    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.025, seed=SEED)) as swarm:
            churn = Churn(swarm, reference, SEED, lives=(8.0, 25.0))
            await churn.run(40.0, sessions=6)
            assert churn.failed == []
            assert churn.held() == {}
            assert len(churn.ended) == 3

    run_virtual(main())
