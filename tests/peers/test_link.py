"""The network process's side, over an engine right here; processes of their own are in test_executor.py."""

import asyncio
import subprocess
import sys

import pytest
import torch

from peers.link import ExecutorLost, InlineLink
from swarm.ids import PeerId, Span
from swarm.messages import Fault, FaultCode, Out, Ping, Pong, Ready, parse
from tests.peers.ring import CLIENT, Chain, Model, Table, make_engine, outputs, row_of
from tests.virtual import run_virtual

B, ALL = PeerId("B"), Span(0, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


def chain_of(model: Model) -> Chain:
    return Chain(Table(model, {}), [(B, ALL)])


def test_the_network_process_never_loads_torch() -> None:
    code = "import sys, peers.link; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_frames_go_through_the_engine(model: Model) -> None:
    chain, hidden = chain_of(model), model.row(5)

    async def main() -> None:
        link = InlineLink(lambda: make_engine(model, ALL))
        await link.send(CLIENT, chain.opening(0).pack())
        assert await link.receive() == (CLIENT, Ready(chain.ids[0]).pack())
        await link.send(CLIENT, chain.step((0, 0, hidden)).pack())
        peer, frame = await link.receive()
        out = parse(frame)
        assert peer == CLIENT
        assert isinstance(out, Out)
        torch.testing.assert_close(row_of(outputs([out], 64), 0), model.blocks(hidden), rtol=1e-4, atol=1e-4)
        assert link.stats.engine.sessions == 1
        await link.gone(CLIENT)
        assert link.stats.engine.sessions == 0

    run_virtual(main())


def test_a_turn_takes_the_time_it_is_told_to(model: Model) -> None:
    chain = chain_of(model)

    async def main() -> float:
        link = InlineLink(lambda: make_engine(model, ALL), step_seconds=0.5)
        await link.send(CLIENT, chain.opening(0).pack())
        await link.receive()
        await link.send(CLIENT, chain.step((0, 0, model.row(5))).pack())
        began = asyncio.get_running_loop().time()
        await link.receive()
        return asyncio.get_running_loop().time() - began

    assert run_virtual(main()) == 0.5


def test_a_killed_engine_is_lost_until_it_is_started_again(model: Model) -> None:
    chain = chain_of(model)

    async def main() -> None:
        link = InlineLink(lambda: make_engine(model, ALL))
        await link.send(CLIENT, chain.opening(0).pack())
        link.kill()
        for lost in (link.receive(), link.send(CLIENT, b""), link.gone(CLIENT)):
            with pytest.raises(ExecutorLost):
                await lost
        assert link.stats.engine.sessions == 0
        await link.restart()
        await link.send(CLIENT, Ping(chain.ids[0], 1).pack())
        fault = parse((await link.receive())[1])
        assert isinstance(fault, Fault)
        assert fault.code is FaultCode.UNKNOWN_SESSION
        await link.close()
        await link.close()

    run_virtual(main())


def test_a_kill_reaches_one_who_waits(model: Model) -> None:
    async def main() -> None:
        link = InlineLink(lambda: make_engine(model, ALL))
        waiting = asyncio.create_task(link.receive())
        await asyncio.sleep(0.1)
        link.kill()
        with pytest.raises(ExecutorLost):
            await waiting

    run_virtual(main())


def test_a_cancelled_receive_loses_no_frame(model: Model) -> None:
    chain = chain_of(model)

    async def main() -> None:
        link = InlineLink(lambda: make_engine(model, ALL), step_seconds=1.0)
        await link.send(CLIENT, chain.opening(0).pack())
        await link.receive()
        await link.send(CLIENT, chain.step((0, 0, model.row(5))).pack())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await link.receive()
        await link.send(CLIENT, Ping(chain.ids[0], 1).pack())
        assert isinstance(parse((await link.receive())[1]), Out)
        assert isinstance(parse((await link.receive())[1]), Pong)

    run_virtual(main())


def test_idle_sessions_expire_while_nothing_comes(model: Model) -> None:
    chain = chain_of(model)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        link = InlineLink(lambda: make_engine(model, ALL, clock=loop.time))
        await link.send(CLIENT, chain.opening(0).pack())
        await link.receive()
        fault = parse((await link.receive())[1])
        assert isinstance(fault, Fault)
        assert loop.time() - began >= 300

    run_virtual(main())
