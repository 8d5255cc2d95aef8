"""Whole serving peers as processes on loopback, with a tiny model: what a volunteer at a terminal would see."""

import asyncio
import os
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from peers.settings import ServeSettings
from peers.thanks import read_thanks, thanks_path
from peers.views import JsonView
from peers.volunteer import volunteer
from swarm.errors import SwarmError
from swarm.identity import Identity
from swarm.ids import PeerId, Span
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.record import PeerRecord, PeerState
from tests.models import tiny_model
from tests.processes import ServePeer

GONE = 20.0  # seconds for processes to vanish


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of four blocks."""
    return tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(model: Path, cache: Path) -> Iterator[ServePeer]:
    """A peer that has begun a swarm and holds its first two blocks; tests leave it as it is."""
    with ServePeer(model, "--blocks", "0:2", "--cache-dir", str(cache), name="first") as peer:
        peer.wait_ready()
        yield peer


def joining(line: str, cache: Path, *options: str) -> ServePeer:
    """A peer started with the join line that another has printed."""
    command, model, *rest = shlex.split(line)
    assert command == "swarm-serve"
    assert rest[0] == "--initial-peers"
    return ServePeer(model, "--cache-dir", str(cache), *options, entry=rest)


def records(peer: ServePeer) -> dict[PeerId, PeerRecord]:
    """What the directory says to somebody new."""

    async def read() -> dict[PeerId, PeerRecord]:
        identity = Identity.ephemeral()
        async with await Libp2pHost.start(identity, initial_peers=peer.addresses) as host:
            directory = await KademliaDirectory.start(host, identity, peer.addresses, client_mode=True)
            found = {record.peer: record for record in await directory.read()}
            await directory.close()
        return found

    return asyncio.run(read())


def test_join_line_pasted_elsewhere_starts_a_peer_with_the_missing_blocks(first: ServePeer, cache: Path) -> None:
    assert first.blocks == Span(0, 2)
    with joining(first.ready.join, cache, "--num-blocks", "2", "--public-name", "second") as second:
        second.wait_ready()
        assert second.blocks == Span(2, 4)
        assert "2:4" in second.ready.reason
        known = records(first)
        assert {known[peer.peer_id].state for peer in (first, second)} == {PeerState.ONLINE}
        assert known[second.peer_id].public_name == "second"
        assert known[second.peer_id].span == Span(2, 4)
        assert known[second.peer_id].cache_left > 0
        assert leaves_nothing(second, first, signal.SIGTERM) == 0


def test_killed_executor_is_started_again_and_the_peer_keeps_its_identity(first: ServePeer, cache: Path) -> None:
    with joining(first.ready.join, cache, "--num-blocks", "1") as peer:
        peer.wait_ready()
        executor(peer).kill()
        peer.wait_line("the device process is back")
        peer.wait_line("online again")
        assert records(first)[peer.peer_id].state is PeerState.ONLINE
        assert leaves_nothing(peer, first, signal.SIGINT) == 130


def leaves_nothing(peer: ServePeer, witness: ServePeer, number: signal.Signals) -> int:
    """A peer that is told to stop says goodbye, and nothing of it stays; its exit status."""
    family = peer.family()
    os.kill(peer.pid, number)
    status = peer.wait()
    assert [event["tokens"] for event in peer.events if event.get("event") == "stats"] == [0]
    assert read_thanks(thanks_path(peer.identity)).runs == 1
    assert psutil.wait_procs(family, GONE)[1] == []
    assert list(peer.temporary.iterdir()) == []
    assert records(witness)[peer.peer_id].state is PeerState.OFFLINE
    return status


def test_end_of_standard_input_ends_the_peer(first: ServePeer, cache: Path) -> None:
    with joining(first.ready.join, cache, "--num-blocks", "1") as peer:
        peer.wait_ready()
        peer.abandon()
        assert peer.wait() == 0


def test_killed_daemon_ends_the_peer_in_a_sentence(first: ServePeer, cache: Path) -> None:
    with joining(first.ready.join, cache, "--num-blocks", "1") as peer:
        peer.wait_ready()
        daemon(peer).kill()
        assert peer.wait() == 1
        assert any("daemon" in line and "start the peer again" in line for line in peer.log)


def test_peer_outlives_the_one_that_it_joined_through(model: Path, cache: Path) -> None:
    """Of which nothing is left when its network process is killed."""
    with ServePeer(model, "--cache-dir", str(cache), "--num-blocks", "1", name="bootstrap") as bootstrap:
        bootstrap.wait_ready()
        with joining(bootstrap.ready.join, cache, "--num-blocks", "1") as peer:
            peer.wait_ready()
            family = bootstrap.family()
            assert len(family) >= 3
            os.kill(bootstrap.pid, signal.SIGKILL)
            assert psutil.wait_procs(family, GONE)[1] == []  # executor and daemon, too
            with joining(join_through(peer), cache, "--num-blocks", "1") as later:
                later.wait_ready()
                assert records(later)[peer.peer_id].state is PeerState.ONLINE


def test_wrong_usage_ends_with_a_sentence_and_status_2(model: Path, cache: Path) -> None:
    with ServePeer(model, "--cache-dir", str(cache), entry=[]) as peer:
        assert peer.wait(60) == 2
        assert any("--initial-peers" in line and "--new-swarm" in line for line in peer.log)
        assert list(peer.temporary.iterdir()) == []


def executor(peer: ServePeer) -> psutil.Process:
    return next(process for process in peer.family()[1:] if process.name() == "swarm executor")


def daemon(peer: ServePeer) -> psutil.Process:
    return next(process for process in peer.family()[1:] if "p2pd" in process.name())


def join_through(peer: ServePeer) -> str:
    return peer.ready.join


# --- bad input, in this process, since importing what a peer needs takes seconds --------------------------------------


def refused(model: Path | str, folder: Path, **options: Any) -> str:
    """The sentence with which a peer refuses to start."""
    given: dict[str, Any] = {
        "new_swarm": True,
        "host": "127.0.0.1",
        "port": 0,
        "data": folder,
        "cache": folder / "cache",
    } | options
    settings = ServeSettings(model=str(model), **given)
    with pytest.raises((SwarmError, BaseExceptionGroup)) as caught:
        asyncio.run(volunteer(settings, JsonView()))
    assert isinstance(caught.value, SwarmError)
    return str(caught.value)


def test_wrong_model_name_is_refused(tmp_path: Path) -> None:
    assert "smolm2" in refused("smolm2", tmp_path)


def test_blocks_outside_the_model_are_refused(model: Path, tmp_path: Path) -> None:
    assert "has blocks 0:4" in refused(model, tmp_path, blocks=Span(2, 6))
    assert "has only 4 blocks" in refused(model, tmp_path, num_blocks=6)


def test_port_in_use_is_refused(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused(model, tmp_path, port=port)


def test_unreachable_initial_peers_are_named(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.ephemeral().peer_id}"
    assert address in refused(model, tmp_path, new_swarm=False, initial_peers=(address,))


def test_identity_that_is_none_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("not a key")
    path.chmod(0o600)
    assert str(path) in refused(model, tmp_path, identity=path)


def test_identity_that_cannot_be_read_is_refused(model: Path, tmp_path: Path) -> None:
    assert str(tmp_path) in refused(model, tmp_path, identity=tmp_path)


def test_cache_that_cannot_be_written_is_refused_for_a_model_that_needs_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert str(file) in refused("smollm2", tmp_path, cache=file / "cache")


def test_span_out_of_memory_is_refused(model: Path, tmp_path: Path) -> None:
    assert "do not fit" in refused(model, tmp_path, num_blocks=4, kv_tokens=10**12)


def test_limit_of_a_gpus_memory_is_refused_where_there_is_none(model: Path, tmp_path: Path) -> None:
    assert "give --max-memory" in refused(model, tmp_path, device="cpu", max_vram=10**9)


def test_adapter_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    assert "no adapter 'nowhere'" in refused(model, tmp_path, adapters=(("style", "nowhere"),))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somebody"}')
    tensors = {f"base_model.model.model.layers.7.mlp.up_proj.lora_{name}.weight": torch.ones(2, 2) for name in "AB"}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    sentence = refused(model, tmp_path, adapters=(("style", str(tmp_path)),))
    assert "of another model: it changes block 7, and llama" in sentence
    assert "has 4 blocks" in sentence


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a CUDA device")
def test_cuda_without_cuda_is_refused(model: Path, tmp_path: Path) -> None:
    assert "--device cpu" in refused(model, tmp_path, device="cuda")


def test_peer_with_less_memory_than_its_blocks_take_serves_them_all_the_same(model: Path, cache: Path) -> None:
    precision = ("--dtype", "fp32", "--quantization", "none")
    limits = ("--max-memory", "600kB", "--kv-cache-tokens", "256")
    with ServePeer(model, "--cache-dir", str(cache), *precision, *limits, blocks="0:4") as peer:
        peer.wait_ready()
        assert peer.blocks == Span(0, 4)
        assert any("4 blocks are more than fit" in line for line in peer.log)
