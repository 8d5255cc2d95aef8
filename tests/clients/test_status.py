import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import anyio.to_thread
import pytest

from clients.status import only
from swarm.cli import run
from swarm.errors import UsageError
from swarm.identity import Identity
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.messages import Contact
from tests.clients.test_drawing import OTHER, SMALL, record

RECORDS = (record("a", 0, 30), record("b", 0, 8, model=OTHER, model_name="qwen", num_blocks=8))


def test_model_is_chosen_by_name_or_digest() -> None:
    assert only("qwen", RECORDS) == RECORDS[1:]
    assert only(SMALL[:8], RECORDS) == RECORDS[:1]
    assert only(SMALL, RECORDS) == RECORDS[:1]


@pytest.mark.parametrize("name", ["llama", SMALL[:7]])
def test_model_that_nobody_serves_is_said_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match="served are: qwen, smollm2"):
        only(name, RECORDS)


def test_swarm_must_be_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_INITIAL_PEERS", raising=False)
    assert run(["status"]) == 2
    assert "--initial-peers" in capsys.readouterr().err


@asynccontextmanager
async def swarm_of_one() -> AsyncIterator[tuple[str, ...]]:
    """A real swarm on loopback with one record in its DHT; the addresses of its only peer."""
    async with AsyncExitStack() as stack:
        identity = Identity.ephemeral()
        host = await Libp2pHost.start(identity)
        stack.push_async_callback(host.close)
        directory = await KademliaDirectory.start(host, identity, new_swarm=True)
        stack.push_async_callback(directory.close)
        addresses, now = await host.transport.addresses(), time.time()
        contact = Contact(identity.peer_id, addresses)
        await directory.announce(replace(record("a", 0, 15), contact=contact, issued=now, expires=now + 60))
        yield addresses


@pytest.mark.anyio
async def test_records_of_a_real_swarm_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async with swarm_of_one() as addresses:
        assert await anyio.to_thread.run_sync(run, ["status", "--json", "--initial-peers", ",".join(addresses)]) == 0
        (model,) = json.loads(capsys.readouterr().out)["models"]
        assert (model["model"], model["missing"], model["peers"][0]["public_name"]) == ("smollm2", [[15, 30]], "Ada")
        assert await anyio.to_thread.run_sync(run, ["status", "smollm2", "--initial-peers", addresses[0]]) == 0
        assert "missing blocks 15:30" in capsys.readouterr().out


def test_swarm_that_does_not_answer_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = Identity.ephemeral()
    address = f"/ip4/127.0.0.1/tcp/1/p2p/{nobody.peer_id}"
    assert run(["status", "--initial-peers", address]) == 1
    assert capsys.readouterr().err.count("\n") == 1
