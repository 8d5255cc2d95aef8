"""Starting and ending libp2p: what goes wrong is said in words, and nothing is left behind."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from swarm.addresses import peer_of
from swarm.errors import NetworkError, UsageError
from swarm.identity import Identity
from swarm.libp2p import Libp2pHost
from swarm.transport import Stream
from swarm.wire import encode
from tests.endings import wait_for_end

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
WORD = encode({"kind": "word"})
SLEEPER = """
import asyncio, sys
from swarm.identity import Identity
from swarm.libp2p import Libp2pHost

async def main():
    async with await Libp2pHost.start(Identity.ephemeral()) as host:
        print(host.p2p._child.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def dead_address() -> str:
    return f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.ephemeral().peer_id}"


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test's own, short enough for the sockets in it, which the test has to leave empty."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    folder.rmdir()


def count(folder: Path) -> int:
    return len(list(folder.iterdir()))


async def test_host_has_the_id_of_its_identity(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path / "identity")
    for _ in range(2):
        async with await Libp2pHost.start(identity) as host:
            assert (host.p2p.peer_id, host.transport.peer_id) == (identity.peer_id, identity.peer_id)


async def test_nothing_is_left_after_closing(sockets: Path) -> None:
    host = await Libp2pHost.start(Identity.ephemeral())
    daemon = psutil.Process(host.p2p._child.pid)
    await host.close()
    await host.close()
    assert not daemon.is_running()


async def test_nothing_is_left_of_a_start_that_fails(sockets: Path) -> None:
    with pytest.raises(NetworkError):
        await Libp2pHost.start(Identity.ephemeral(), initial_peers=[dead_address()])


async def test_nothing_is_left_of_a_start_that_is_cancelled(sockets: Path) -> None:
    starting = asyncio.create_task(Libp2pHost.start(Identity.ephemeral()))
    async with asyncio.timeout(PATIENCE):
        while True:
            daemons = psutil.Process().children()
            if daemons:
                break
            await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not any(daemon.is_running() for daemon in daemons)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_daemon_dies_with_its_process(sockets: Path, end: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(sockets)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SLEEPER,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        daemon = psutil.Process(int(await process.stdout.readline()))
        process.send_signal(end)
        await process.wait()
        await asyncio.to_thread(wait_for_end, daemon)
    async with await Libp2pHost.start(Identity.ephemeral()):
        assert count(sockets) == 1  # its own: it has swept away what the other could not


async def test_daemons_death_is_noticed_at_once() -> None:
    async with await Libp2pHost.start(Identity.ephemeral()) as host:
        host.p2p._child.kill()
        async with asyncio.timeout(2):
            with pytest.raises(NetworkError, match="daemon of this process has ended"):
                await host.run(asyncio.Event().wait(), 60, "waiting")
            for call in (host.transport.addresses(), host.transport.open(Identity.ephemeral().peer_id, "/test")):
                with pytest.raises(NetworkError, match="daemon of this process has ended"):
                    await call
        assert not host.alive


async def test_call_that_takes_too_long_is_given_up() -> None:
    async with await Libp2pHost.start(Identity.ephemeral()) as host:
        with pytest.raises(NetworkError, match=r"waiting took longer than 0\.01 s"):
            await host.run(asyncio.Event().wait(), 0.01, "waiting")


async def test_port_in_use_is_said() -> None:
    async with await Libp2pHost.start(Identity.ephemeral()) as host:
        (address,) = await host.transport.addresses()
        port = int(address.split("/")[4])
        with pytest.raises(NetworkError, match=f"can't listen on 127.0.0.1:{port}: Address already in use"):
            await Libp2pHost.start(Identity.ephemeral(), port=port)
    async with await Libp2pHost.start(Identity.ephemeral(), port=port) as again:
        assert f"/tcp/{port}/" in (await again.transport.addresses())[0]


async def test_dead_initial_peers_are_named() -> None:
    dead = [dead_address(), dead_address()]
    with pytest.raises(NetworkError, match="none of the initial peers answered") as caught:
        await Libp2pHost.start(Identity.ephemeral(), initial_peers=dead)
    assert all(address in str(caught.value) for address in dead)


async def test_client_listens_to_nobody() -> None:
    async with await Libp2pHost.start(Identity.ephemeral(), client=True) as host:
        assert await host.transport.addresses() == ()
        connections = psutil.Process(host.p2p._child.pid).net_connections(kind="inet")
        assert [entry for entry in connections if entry.status == psutil.CONN_LISTEN] == []


async def test_announced_address_is_told_in_place_of_the_real_one() -> None:
    identity = Identity.ephemeral()
    async with await Libp2pHost.start(identity, announce=["/ip4/192.0.2.7/tcp/31330"]) as host:
        assert await host.transport.addresses() == (f"/ip4/192.0.2.7/tcp/31330/p2p/{identity.peer_id}",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"initial_peers": ["nonsense"]}, "'nonsense' is no multiaddress"),
        ({"initial_peers": ["/ip4/192.0.2.7/tcp/31330"]}, "does not end in /p2p/PEER-ID"),
        ({"announce": ["192.0.2.7:31330"]}, "is no multiaddress"),
        ({"announce": ["/ip4/192.0.2.7/tcp/0"]}, "port"),
        ({"host": "example.org"}, "is no IP address"),
        ({"port": 70000}, "is no port"),
    ],
)
async def test_option_that_makes_no_sense_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        await Libp2pHost.start(Identity.ephemeral(), **options)


@pytest.mark.parametrize(("limit", "others"), [("max_streams", False), ("max_streams_each", True)])
async def test_streams_beyond_the_limit_are_closed(limit: str, others: bool) -> None:
    async with await Libp2pHost.start(Identity.ephemeral(), **{limit: 2}) as host:

        async def serve(stream: Stream) -> None:
            await stream.send(WORD)
            await stream.receive()

        await host.transport.serve("/test", serve)
        async with await Libp2pHost.start(Identity.ephemeral(), client=True) as client:
            addresses = await host.transport.addresses()
            streams = [await client.transport.open(host.peer_id, "/test", addresses) for _ in range(5)]
            async with asyncio.timeout(PATIENCE):
                served = [stream for stream in streams if await _is_served(stream)]
                assert len(served) == 2
                async with await Libp2pHost.start(Identity.ephemeral(), client=True) as another:
                    assert await _is_served(await another.transport.open(host.peer_id, "/test", addresses)) == others
                served[0].close()
                while not await _is_served(await client.transport.open(host.peer_id, "/test", addresses)):
                    pass


async def _is_served(stream: Stream) -> bool:
    try:
        return await stream.receive() == WORD
    except NetworkError:
        return False


def test_peer_of_an_address_is_its_last_part() -> None:
    relay, peer = Identity.ephemeral().peer_id, Identity.ephemeral().peer_id
    assert peer_of(f"/ip4/192.0.2.7/tcp/1/p2p/{relay}/p2p-circuit/p2p/{peer}") == peer


async def test_a_ctrl_c_in_the_terminal_does_not_reach_the_daemon(sockets: Path) -> None:
    async with await Libp2pHost.start(Identity.ephemeral()) as host:
        pid = host.p2p._child.pid
        assert os.getpgid(pid) == pid, "the terminal tells the foreground process group, which is ours"
