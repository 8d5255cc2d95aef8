"""The bridge from blocking code to the loop; over a network in memory, in real time."""

import asyncio
import threading
from concurrent.futures import CancelledError
from contextlib import AsyncExitStack

import pytest

from clients.client import Client, Model
from clients.connection import Connection
from swarm.errors import MissingBlocks, NetworkError
from swarm.ids import Digest, PeerId
from swarm.memory import MemoryDirectory, MemoryNetwork

MODEL = Model("nobody-serves-this", Digest("0" * 64), 4, 64)


async def enter(stack: AsyncExitStack) -> Client:
    transport = MemoryNetwork().transport(PeerId("client"))
    return await stack.enter_async_context(Client(transport, MemoryDirectory({}), MODEL))


async def double(number: int) -> int:
    return 2 * number


def test_work_runs_on_the_connections_loop_from_any_thread() -> None:
    connection = Connection(enter)
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(connection.call(double(n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.close()
    assert sorted(results) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_after_close_every_call_says_so() -> None:
    connection = Connection(enter)
    connection.close()
    connection.close()
    with pytest.raises(NetworkError, match="closed"):
        connection.call(double(1))


def test_closing_tells_whoever_waits() -> None:
    connection = Connection(enter)
    begun = threading.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    future = connection.submit(forever())
    assert begun.wait(10)
    connection.close()
    with pytest.raises(CancelledError):
        future.result(10)


def test_an_entry_that_fails_is_the_callers_error() -> None:
    async def fail(stack: AsyncExitStack) -> Client:
        raise NetworkError("none of the initial peers answered")

    with pytest.raises(NetworkError, match="none of the initial peers"):
        Connection(fail)


def test_a_swarm_without_peers_for_the_model_is_named() -> None:
    connection = Connection(enter, patience=0.0)
    with pytest.raises(MissingBlocks, match="no peer of this swarm serves nobody-serves-this"):
        connection.call(connection.session(embed=lambda tokens, start: tokens, lease_tokens=8))
    connection.close()
