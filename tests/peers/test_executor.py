"""Executor processes, real ones, over a tiny model."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import psutil
import pytest
import torch

from peers.executor_settings import ExecutorReady, ExecutorSettings, ExecutorStats, Streaming
from peers.limits import EngineLimits
from peers.link import ExecutorLost, Patience, ProcessLink
from peers.loading import load
from peers.machine import may_have_cuda
from peers.process_executor import WarmExecutors
from peers.stats import EngineStats
from routing.perf import Profile
from swarm.errors import ModelError, UsageError
from swarm.ids import Digest, PeerId, Span, new_session_id
from swarm.messages import Fault, Message, Out, Ping, Pong, Ready, parse
from tests.peers.ring import CLIENT, Chain, Model, Table, outputs, row_of

UNKNOWN = new_session_id()
B, ALL = PeerId("B"), Span(0, 4)
PATIENCE = Patience(start=90.0, silence=60.0)
LIMIT = 100.0  # seconds of a whole test


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def settings(model: Model, tmp_path_factory: pytest.TempPathFactory) -> ExecutorSettings:
    """One cache for all tests, so that the speed is measured at most once where the machine is quiet."""
    return ExecutorSettings(
        model=str(model.checkpoint.folder),
        blocks=ALL,
        cache=str(tmp_path_factory.mktemp("cache")),
        kv_tokens=1024,
        threads=1,
    )


@asynccontextmanager
async def executor(settings: ExecutorSettings, patience: Patience = PATIENCE) -> AsyncIterator[ProcessLink]:
    link = ProcessLink(settings, patience)
    try:
        async with asyncio.timeout(LIMIT):
            await link.start()
            yield link
    finally:
        await link.close()


async def hear(link: ProcessLink) -> Message:
    return parse((await link.receive())[1])


async def let_it_tell(link: ProcessLink) -> None:
    """Stats come after the answers of the turn in which sessions changed, so before those of a later turn."""
    for nonce in range(2):
        await link.send(CLIENT, Ping(UNKNOWN, nonce).pack())
        assert isinstance(await hear(link), Fault)


@pytest.mark.anyio
async def test_a_process_computes_what_the_model_does_and_tells_how_it_is(
    model: Model, settings: ExecutorSettings
) -> None:
    chain, hidden = Chain(Table(model, {}), [(B, ALL)]), model.row(9)
    async with executor(settings) as link:
        assert link.ready.model == model.checkpoint.digest
        assert (link.ready.hidden_size, link.ready.kv_tokens) == (64, 1024)
        assert link.ready.profile.row > 0
        await link.send(CLIENT, chain.opening(0).pack())
        assert await link.receive() == (CLIENT, Ready(chain.ids[0]).pack())
        await let_it_tell(link)
        assert (link.stats.pid, link.stats.engine.sessions) == (link.pid, 1)
        assert link.stats.rss > 0
        await link.send(CLIENT, chain.step((0, 0, hidden)).pack())
        out = await hear(link)
        assert isinstance(out, Out)
        torch.testing.assert_close(row_of(outputs([out], 64), 0), model.blocks(hidden), rtol=1e-4, atol=1e-4)
        await link.gone(CLIENT)
        await let_it_tell(link)
        assert (link.stats.engine.sessions, link.stats.engine.tokens_done) == (0, 9)
        assert link.stats.engine.kv_tokens_free == 1024


@pytest.mark.anyio
async def test_neither_nonsense_nor_an_interrupt_ends_the_process(model: Model, settings: ExecutorSettings) -> None:
    """What an interrupt means is for the parent to judge."""
    chain = Chain(Table(model, {}), [(B, ALL)])
    async with executor(settings) as link:
        assert link.pid is not None
        os.kill(link.pid, signal.SIGINT)
        await link.send(CLIENT, b"")
        await link.send(CLIENT, os.urandom(1000))
        await link.send(CLIENT, chain.opening(0).pack())
        await link.send(CLIENT, Ping(chain.ids[0], 7).pack())
        assert isinstance(await hear(link), Ready)
        assert isinstance(await hear(link), Pong)


@pytest.mark.anyio
async def test_a_killed_process_is_noticed_and_started_again(model: Model, settings: ExecutorSettings) -> None:
    chain = Chain(Table(model, {}), [(B, ALL)])
    async with executor(settings) as link:
        first = link.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ExecutorLost, match="signal 9"):
            await link.receive()
        with pytest.raises(ExecutorLost):
            await link.send(CLIENT, b"")
        await link.restart()
        assert link.pid != first
        await link.send(CLIENT, chain.opening(0).pack())
        assert isinstance(await hear(link), Ready)
        second = link.pid
    assert second is not None
    assert not psutil.pid_exists(second)


@pytest.mark.skipif(not hasattr(os, "pidfd_open") or may_have_cuda(), reason="executors are not forked here")
def test_the_first_process_may_be_forked_and_is_started_from_scratch_when_it_is_lost(
    settings: ExecutorSettings,
) -> None:
    asked = [sys.executable, "-m", "tests.peers.forking", settings.to_json().decode()]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=LIMIT)
    told = json.loads(done.stdout)
    assert told.pop("lost").startswith("the executor was killed by signal 9")
    assert told == {"first": True, "blocks": "0:4", "second": True}


@pytest.mark.anyio
@pytest.mark.parametrize("killed", [False, True])
async def test_a_process_that_was_started_ahead_serves_what_it_is_told_last(
    settings: ExecutorSettings, killed: bool
) -> None:
    async with AsyncExitStack() as stack:
        warm = WarmExecutors()
        stack.push_async_callback(warm.close)
        others = {child.pid for child in psutil.Process().children()}
        await warm.warm_up(replace(settings, blocks=Span(0, 2)))
        await warm.warm_up(settings)
        (waiting,) = {child.pid for child in psutil.Process().children()} - others
        if killed:
            os.kill(waiting, signal.SIGKILL)
        executor = await warm.start(settings)
        stack.push_async_callback(executor.close)
        assert executor.link.ready.blocks == ALL
        assert (executor.link.pid == waiting) is not killed


@pytest.mark.anyio
async def test_a_process_that_hangs_is_ended(settings: ExecutorSettings) -> None:
    async with executor(settings, replace(PATIENCE, silence=2.5)) as link:
        assert link.pid is not None
        os.kill(link.pid, signal.SIGSTOP)
        with pytest.raises(ExecutorLost, match="said nothing"):
            await link.receive()
        pid = link.pid
    assert not psutil.pid_exists(pid)


PARENT = """
import asyncio, sys
from peers.executor_settings import ExecutorSettings
from peers.link import ProcessLink

async def main():
    link = ProcessLink(ExecutorSettings.from_json(sys.stdin.buffer.readline()))
    await link.start()
    print(link.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_process_does_not_outlive_a_parent_that_is_killed(settings: ExecutorSettings) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe, stderr=pipe) as parent:
        try:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write(settings.to_json() + b"\n")
            parent.stdin.flush()
            pid = int(parent.stdout.readline())
            process = psutil.Process(pid)
            assert process.is_running()
        finally:
            parent.kill()
        parent.communicate(timeout=LIMIT)
        assert psutil.wait_procs([process], LIMIT)[1] == []


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "/nowhere/at/all"}, ModelError, "no model, folder or file"),
        ({"blocks": Span(0, 9)}, ModelError, "has blocks 0:4"),
        ({"dtype": "fp7"}, UsageError, "dtype"),
        ({"device": "cuda:77"}, UsageError, "device 'cuda:77' can't be used"),
        ({"device": "nonsense"}, UsageError, "device 'nonsense' can't be used"),
    ],
)
def test_what_goes_wrong_in_loading_is_an_error_that_says_so(
    settings: ExecutorSettings, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    """In this process, since each of its own takes seconds to start."""
    with pytest.raises(error, match=words):
        load(replace(settings, **changes))  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_what_goes_wrong_in_loading_arrives_as_the_same_error(settings: ExecutorSettings) -> None:
    link = ProcessLink(replace(settings, device="nonsense"), PATIENCE)
    with pytest.raises(UsageError, match="device 'nonsense' can't be used"):
        await link.start()
    assert link.pid is None


@pytest.mark.anyio
async def test_what_an_executor_prints_stands_in_our_log_before_its_loss_is_told(
    settings: ExecutorSettings, caplog: pytest.LogCaptureFixture
) -> None:
    link = ProcessLink(replace(settings, page_size=0), PATIENCE)  # its program fails at that
    with pytest.raises(ExecutorLost, match="exit status 1; its last words are in the log"):
        await link.start()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.anyio
async def test_a_start_that_fails_the_second_time_is_a_loss_like_any_other(settings: ExecutorSettings) -> None:
    link = ProcessLink(replace(settings, model="/removed/meanwhile"), PATIENCE)
    with pytest.raises(ExecutorLost, match="did not start again: there is no model"):
        await link.restart()


@pytest.mark.anyio
async def test_a_process_that_is_not_ready_in_time_is_ended(settings: ExecutorSettings) -> None:
    link = ProcessLink(settings, replace(PATIENCE, start=0.05))
    with pytest.raises(ExecutorLost, match="not ready"):
        await link.start()
    assert link.pid is None


def test_what_is_said_between_the_processes_survives_the_way() -> None:
    profile = Profile(overhead=0.5, row=1.0, extra_row=0.5, prompt_token=0.25)
    settings = ExecutorSettings(model="m", blocks=ALL, cache="/c", limits=EngineLimits(batch_tokens=99))
    assert ExecutorSettings.from_json(settings.to_json()) == settings
    ready = ExecutorReady(
        pid=1,
        model=Digest("d"),
        blocks=ALL,
        hidden_size=2,
        max_positions=3,
        kv_tokens=4,
        outbox_tokens=5,
        dtype="fp32",
        device="cpu",
        profile=profile,
    )
    streaming = replace(ready, streaming=Streaming(blocks=2, size=3, rate=None))
    for said in (ready, streaming):
        assert ExecutorReady.from_json(said.to_json()) == said
    stats = ExecutorStats(engine=EngineStats(sessions=3), rss=1, pid=2)
    assert ExecutorStats.from_json(stats.to_json()) == stats
