"""Forks an executor, as `swarm-serve` does, and tells in JSON how it fares: `-m tests.peers.forking SETTINGS`."""

import asyncio
import json
import os
import signal
import sys

from peers.executor_settings import ExecutorSettings
from peers.forked import Forked, fork_executor
from peers.link import ExecutorLost, ProcessLink
from peers.process_executor import WarmExecutors


async def fare(forked: Forked | None, settings: ExecutorSettings) -> dict[str, object]:
    assert forked is not None
    warm = WarmExecutors(forked)
    executor = await warm.start(settings)
    link: ProcessLink = executor.link
    told: dict[str, object] = {"first": link.pid == forked.pid == link.ready.pid, "blocks": str(link.ready.blocks)}
    os.kill(forked.pid, signal.SIGINT)
    os.kill(forked.pid, signal.SIGKILL)
    try:
        await link.receive()
    except ExecutorLost as lost:
        told["lost"] = str(lost)
    await executor.restart()
    told["second"] = link.pid != forked.pid
    await executor.close()
    await warm.close()
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(fare(fork_executor(), ExecutorSettings.from_json(sys.argv[1].encode())))))
