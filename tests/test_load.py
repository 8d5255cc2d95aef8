"""More users than there is room for: all are served, nothing is left behind, what is remembered is in nobody's way."""

import pytest

from swarm.checkpoint import Checkpoint
from swarm.memory import MemoryNetwork
from tests.load import Load
from tests.memory_swarm import MemorySwarm, Reference
from tests.virtual import run_virtual


@pytest.mark.parametrize("room", [512, 8192])
def test_sixty_four_users_of_mixed_lengths_are_all_served(
    checkpoint: Checkpoint, reference: Reference, room: int
) -> None:
    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.01)) as swarm:
            load = Load(swarm, reference, room=room, seed=1)
            await load.begin()
            await load.run(users=64, turns=1)
            assert load.served == 64
            assert not any(load.held())
            stats = [member.engine.stats() for member in swarm.members.values()]
            assert all(each.tokens_shared for each in stats)
            assert all(each.batches < each.tokens_done for each in stats), "sessions went through together"

    run_virtual(main())
