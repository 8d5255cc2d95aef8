"""A step of training over slow lines, in virtual time: how long it takes with and without compression."""

import asyncio

import torch

from clients.training.chains import TrainingChains, total
from clients.training.compression import Compress
from clients.training.sums import Sums
from swarm.checkpoint import Checkpoint
from swarm.ids import Span
from swarm.memory import MemoryNetwork
from swarm.training import MicroBatch, PackedAdapter, TensorSpec, Tuned, adapter_key
from tests.memory_swarm import MemorySwarm
from tests.virtual import run_virtual

TOKENS, MICRO_BATCHES = 32, 6
LINE = 20_000.0  # bytes a second; computing takes a millisecond


def low_rank(width: int) -> PackedAdapter:
    specs = (TensorSpec("A", "fp32", (2, width)), TensorSpec("B", "fp32", (width, 2)))
    tuned = (Tuned("self_attn.q_proj", "lora", 1.0, 0.0, specs),)
    body = (torch.randn(4 * width, generator=torch.Generator().manual_seed(0)) / 10).numpy().tobytes()
    return PackedAdapter(adapter_key(tuned, body), tuned, body)


def step(checkpoint: Checkpoint, compress: Compress) -> tuple[float, torch.Tensor]:
    """Seconds, and all gradients of adapters."""

    async def main() -> tuple[float, torch.Tensor]:
        async with MemorySwarm(checkpoint, MemoryNetwork(bandwidth=LINE)) as swarm:
            await swarm.add("one", Span(0, 2))
            await swarm.add("two", Span(2, checkpoint.num_blocks))
            chains = TrainingChains(await swarm.client(), patience=1.0, compress=compress)
            adapters = dict.fromkeys(range(checkpoint.num_blocks), low_rank(checkpoint.hidden_size))
            keys = tuple((block, adapter.key) for block, adapter in adapters.items())
            hidden = torch.randn(
                MICRO_BATCHES, TOKENS, checkpoint.hidden_size, generator=torch.Generator().manual_seed(1)
            )
            begun = asyncio.get_running_loop().time()
            async with asyncio.TaskGroup() as tasks:
                batch = MicroBatch(0, (TOKENS,), keys)
                ways = [tasks.create_task(chains.forward(batch, part, adapters, first=0)) for part in hidden]
            legs = [way.result()[0] for way in ways]
            async with asyncio.TaskGroup() as tasks:
                sums = Sums(chains, legs, adapters, first=0, tasks=tasks) if chains.compression.sums else None
                back = [
                    tasks.create_task(chains.backward(way, part, adapters, first=0, sums=sums))
                    for way, part in zip(legs, hidden, strict=True)
                ]
            took = asyncio.get_running_loop().time() - begun
            found = total(*(task.result()[1] for task in back), *(sums.found if sums else ()))
            await chains.close()
            return took, torch.cat([tensor.flatten() for block in sorted(found) for tensor in found[block]])

    return run_virtual(main())


def test_over_slow_lines_a_step_takes_less_time_the_less_is_sent(checkpoint: Checkpoint) -> None:
    plain, exact = step(checkpoint, Compress.NONE)
    summed, same = step(checkpoint, Compress.SUMS)
    rounded, close = step(checkpoint, Compress.INT8)
    adapted, closest = step(checkpoint, Compress.AUTO)
    assert plain > summed > 1.5 * rounded
    assert plain > adapted
    torch.testing.assert_close(same, exact, rtol=1e-4, atol=1e-5)
    for found in (close, closest):
        assert float((found - exact).norm() / exact.norm()) < 0.2
