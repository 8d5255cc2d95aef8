"""Ten minutes of sixty-four users: in the second half memory stays what it is.

In the first, torch meets batches of every size, for each of which it keeps what it has prepared.
"""

import time

import psutil
import pytest

from swarm.checkpoint import Checkpoint, resolve
from swarm.memory import MemoryNetwork
from tests.load import Load
from tests.memory_swarm import MemorySwarm, Reference
from tests.models import tiny_model
from tests.soak.plans import SEED
from tests.virtual import run_virtual

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

SECONDS = 600.0
ALLOWED = 8 << 20  # bytes: what the allocator of a process may keep in pieces


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("load")
    return resolve(str(tiny_model("llama", folder / "llama")), cache=folder / "cache")


def test_memory_is_flat_under_load(tiny: Checkpoint, figures: list[str]) -> None:
    async def main() -> None:
        async with MemorySwarm(tiny, MemoryNetwork(delay=0.01)) as swarm:
            load = Load(swarm, Reference(tiny), room=2048, seed=SEED)
            await load.begin()
            sizes = []
            began = time.monotonic()
            while time.monotonic() - began < SECONDS:
                swarm.events.clear()
                await load.run(users=64, turns=2)
                assert not any(load.held())
                sizes.append(psutil.Process().memory_info().rss)
            settled = sizes[len(sizes) // 2]
            figures.append(
                f"{load.served} sessions of 64 users at once in {SECONDS:.0f} s: {settled >> 20} MiB after half of "
                f"them, {sizes[-1] >> 20} MiB after the last"
            )
            assert max(sizes[len(sizes) // 2 :]) - settled < ALLOWED

    run_virtual(main())
