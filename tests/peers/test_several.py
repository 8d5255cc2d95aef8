"""Several devices by one command: real processes on loopback with a tiny model, each "device" the CPU."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from peers.settings import ServeSettings, parse_devices
from peers.several import Several, from_here, same_command, share_out
from swarm.cli import COMMANDS, Entry, load_command, run
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.record import PeerState
from swarm.running import PAUSE
from tests.endings import wait_for_end
from tests.models import tiny_model
from tests.peers.test_serve_process import records
from tests.processes import ServePeer

GONE = 20.0  # seconds for processes to vanish
BOTH = ("cpu", "cpu-2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of four blocks."""
    return tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class Command(ServePeer):
    """One that serves on several devices."""

    def said(self, event: str) -> dict[str, dict[str, Any]]:
        """The latest event of that name of each device."""
        return {line["on"]: line for line in self.events if line.get("event") == event}

    def wait_ready_on(self, *labels: str) -> dict[str, dict[str, Any]]:
        self._wait(lambda: set(labels) <= set(self.said("ready")), f"is not ready on {' and '.join(labels)}", 120)
        return self.said("ready")

    def peers(self) -> dict[str, psutil.Process]:
        """The process of each device's peer in a swarm that the first has begun."""
        serving = [child for child in psutil.Process(self.pid).children() if "serve" in child.cmdline()]
        joined = [any("--initial-peers" in word for word in child.cmdline()) for child in serving]
        return {BOTH[is_second]: child for is_second, child in zip(joined, serving, strict=True)}


@pytest.fixture
def two(model: Path, cache: Path) -> Iterator[Command]:
    """One command that has begun a swarm with two peers, each of which serves half of the model."""
    with Command(model, "--device", "cpu,cpu", "--cache-dir", str(cache), blocks="0:4", name="two") as command:
        command.wait_ready_on(*BOTH)
        yield command


def online(command: Command) -> dict[PeerId, Span]:
    """As the directory knows them."""
    return {record.peer: record.span for record in records(command).values() if record.state is PeerState.ONLINE}


def test_two_devices_begin_a_swarm_of_two_peers_that_pause_and_leave_together(two: Command) -> None:
    ready = two.said("ready")
    assert online(two) == {ready["cpu"]["peer_id"]: Span(0, 2), ready["cpu-2"]["peer_id"]: Span(2, 4)}
    assert two.identity.exists()
    assert two.identity.with_name("identity-2").exists()
    family = two.family()
    os.kill(two.pid, PAUSE)
    for label in BOTH:
        two.wait_line(f'"paused: it was told to", "on": "{label}"')
    os.kill(two.pid, signal.SIGTERM)
    assert two.wait() == 0
    assert set(two.said("stats")) == set(BOTH)  # the last they say, in good order
    assert psutil.wait_procs(family, GONE)[1] == []
    assert list(two.temporary.iterdir()) == []


def test_killed_peer_leaves_the_other_serving_which_does_not_outlive_the_command(two: Command) -> None:
    left = two.said("ready")["cpu-2"]["peer_id"]
    two.peers()["cpu"].kill()
    assert "cpu was ended by SIGKILL; cpu-2 goes on" in two.wait_line("the peer on")
    assert online(two)[left] == Span(2, 4)
    family = two.family()
    os.kill(two.pid, signal.SIGKILL)
    for process in family[1:]:
        wait_for_end(process)


def test_peer_that_can_not_begin_is_told_and_the_other_goes_on(model: Path, cache: Path) -> None:
    """They share blocks 2 to 5, and the model ends with 3."""
    with Command(model, "--device", "cpu,cpu", "--cache-dir", str(cache), blocks="2:6", name="two") as command:
        assert "cpu-2 has ended with exit status 2; cpu goes on" in command.wait_line("the peer on")
        os.kill(command.pid, signal.SIGTERM)
        assert command.wait() == 2


def test_swarm_that_nobody_could_begin_is_joined_by_nobody(model: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "identity").write_text("not a key")
    options = ("--device", "cpu,cpu", "--cache-dir", str(cache))
    with Command(model, *options, blocks="0:4", identity=tmp_path / "identity") as command:
        assert command.wait(60) == 2
        assert any("[cpu]" in line and str(tmp_path) in line for line in command.log)
        assert not any("cpu-2" in line for line in command.log)


def test_lines_for_people_name_the_device(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "swarm", "serve", "--device=cpu,cpu", "--new-swarm", "--", "no-such-model"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "[cpu] swarm: " in done.stderr
    assert "the peer on cpu has ended with exit status 2\n" in done.stderr


STUBBORN = """
import signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as line:
    line.send(b"up")
    signal.sigwait({signal.SIGTERM})
    line.send(b"told")
    signal.sigwait({signal.SIGTERM})
"""


def test_being_told_again_is_handed_on(tmp_path: Path) -> None:
    async def tell_twice() -> None:
        lines: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        async with await asyncio.start_server(lambda *line: lines.put_nowait(line), "127.0.0.1") as server:
            words = [sys.executable, "-c", STUBBORN, str(server.sockets[0].getsockname()[1])]
            joining = settings(new_swarm=False, initial_peers=("somebody",))
            several = Several(joining, [{"device": "cpu"}] * 2, lambda _: words, tmp_path)
            life = asyncio.create_task(several.run())
            children = [await lines.get() for _ in BOTH]
            for child, _ in children:
                assert await child.readexactly(2) == b"up"
            life.cancel()
            for child, _ in children:
                assert await child.readexactly(4) == b"told"
            assert not life.done()
            life.cancel()
            for child, back in children:
                assert await child.read() == b""
                back.close()
            with pytest.raises(asyncio.CancelledError):
                await life
            assert several.status == 0

    asyncio.run(tell_twice())


def test_peer_that_fails_is_in_the_exit_status(tmp_path: Path) -> None:
    joining = settings(new_swarm=False, initial_peers=("somebody",))
    shares = [{"device": "cpu", "status": status} for status in (0, 3)]
    several = Several(joining, shares, lambda own: [sys.executable, "-c", f"exit({own['status']})"], tmp_path)
    asyncio.run(several.run())
    assert several.status == 1  # nobody told the command to end


# --- what each is told ------------------------------------------------------------------------------------------------


def settings(**options: Any) -> ServeSettings:
    given: dict[str, Any] = {"new_swarm": True, "data": Path("data"), "cache": Path("cache")} | options
    return ServeSettings(model="tiny", **given)


def shared(devices: Sequence[str], announce: Sequence[str] = (), **options: Any) -> list[dict[str, object]]:
    shares = share_out(settings(**options), announce, devices, cores=8, memory=1000)
    return [{name: value for name, value in share.items() if value is not None} for share in shares]


def test_ports_and_identities_are_numbered_and_blocks_shared_in_order() -> None:
    options = {"port": 4000, "identity": Path("keys/mine"), "blocks": Span(10, 15)}
    first, second = shared(("cuda:0", "cuda:1"), **options)
    assert first == {
        "device": "cuda:0",
        "port": 4000,
        "identity_path": Path("keys/mine"),
        "blocks": Span(10, 13),
        "threads": 4,
        "stop_with_stdin": True,
    }
    assert second == {
        "device": "cuda:1",
        "port": 4001,
        "identity_path": Path("keys/mine-2"),
        "blocks": Span(13, 15),
        "threads": 4,
        "stop_with_stdin": True,
    }


def test_any_port_is_any_port_for_each() -> None:
    assert [share["port"] for share in shared(("cpu", "cpu"), port=0)] == [0, 0]


def test_processors_that_take_what_fits_share_the_memory() -> None:
    assert [share.get("max_memory") for share in shared(("cpu", "cuda:0", "cpu"))] == ["500B", None, "500B"]
    assert [share.get("max_memory") for share in shared(("cpu", "cpu"), num_blocks=5)] == [None, None]
    assert [share["num_blocks"] for share in shared(("cpu", "cpu"), num_blocks=5)] == [3, 2]
    assert [share["threads"] for share in shared(("cpu", "cpu"), threads=3)] == [3, 3]


def test_limits_of_memory_go_to_those_who_have_it() -> None:
    each = shared(("cpu", "cuda:0"), max_memory=700, max_vram=900)
    assert [(share.get("max_memory"), share.get("max_vram")) for share in each] == [("700B", None), (None, "900B")]
    assert shared(("cuda:0", "cuda:1"), max_memory=700)[0]["max_memory"] == "700B"  # which it refuses


@pytest.mark.parametrize(
    ("options", "announce", "sentence"),
    [
        ({"blocks": Span(3, 4)}, (), "--blocks 3:4: 2 devices share"),
        ({"num_blocks": 1}, (), "--num-blocks 1: 2 devices share"),
        ({"port": 65535}, (), "--port 65535: 2 devices"),
        ({"port": 4000}, ("198.51.100.4:4000",), "--announce: .* --port N"),
        ({}, ("198.51.100.4:4000",), "--announce: .* --port N"),
    ],
)
def test_options_that_can_not_hold_for_several_are_refused(
    options: dict[str, Any], announce: Sequence[str], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        shared(("cuda:0", "cuda:1"), announce, **options)


def test_announced_address_is_counted_with_the_ports() -> None:
    assert len(shared(("cuda:0", "cuda:1"), ("198.51.100.4",), port=4000)) == 2


def test_others_on_this_machine_do_not_go_through_what_is_announced() -> None:
    announced = settings(host="0.0.0.0", port=4000, announce=("/ip4/198.51.100.4/tcp/4000",))
    assert from_here("/ip4/198.51.100.4/tcp/4000/p2p/12D3", announced) == "/ip4/127.0.0.1/tcp/4000/p2p/12D3"
    assert from_here("/ip4/192.168.1.4/tcp/4000/p2p/12D3", settings()) == "/ip4/192.168.1.4/tcp/4000/p2p/12D3"


def test_command_is_given_again_but_for_what_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from the environment may be a secret, and is left there."""
    monkeypatch.setenv("SWARM_INITIAL_PEERS", "swarm-invite.SECRET")
    entry = COMMANDS["serve"]
    assert isinstance(entry, Entry)
    given = ["tiny", "--adapters=a=b", "--adapters", "c", "--new-swarm", "--log-format", "json", "--device=cpu,cpu"]
    context = load_command("serve", entry).make_context("serve", given)
    assert same_command(context, {"device": "cpu", "threads": 2, "new_swarm": None})[1:] == [
        *("-m", "swarm", "serve"),
        *("--device=cpu", "--threads=2", "--adapters=a=b", "--adapters=c", "--log-format=json"),
        *("--", "tiny"),
    ]


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cuda:1", ("cuda:1",)),
        ("cuda, cuda:1", ("cuda:0", "cuda:1")),
        ("cpu,cpu,cuda:3", ("cpu", "cpu", "cuda:3")),
    ],
)
def test_devices_are_parted_by_commas(text: str, devices: tuple[str, ...]) -> None:
    assert parse_devices(text) == devices


@pytest.mark.parametrize("text", ["cpu,tpu", "cpu,", ",", "auto,cpu", "cuda:0,cuda", "mps,mps"])
def test_bad_list_of_devices_is_refused_in_one_sentence(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "tiny", "--new-swarm", f"--device={text}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("swarm: --device ")
    assert text in line
