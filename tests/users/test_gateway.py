"""`swarm gateway` as somebody runs it: what is refused, a swarm that comes later, a gateway that is killed."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from clients.local_gateway import GatewayProcess
from swarm.subprocesses import ServeProcess
from tests.processes import ServePeer
from tests.users.bystander import Bystander
from tests.users.test_refusals import NOWHERE, refused

LIMIT = 60.0  # seconds
# "one one one …", never the end
LONG: dict[str, Any] = {"model": "tiny", "prompt": "one two", "max_tokens": 600, "logit_bias": {"3": 100}}


def gateway(model: Path, cache: Path, address: str, *options: str) -> GatewayProcess:
    return GatewayProcess([str(model), "--initial-peers", address, "--cache-dir", str(cache), "--port=0", *options])


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ((), 2, "which swarm? Give --initial-peers"),
        (("--initial-peers", NOWHERE, "--api-key", "short"), 2, "as a key it is too short"),
        (("--initial-peers", NOWHERE, "--tls-cert", "/nowhere"), 2, "--tls-cert and --tls-key go together"),
        (("--initial-peers", NOWHERE, "--port", "0"), 1, "none of the initial peers answered"),
    ],
)
def test_what_can_not_work_is_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, sentence: str
) -> None:
    assert sentence in refused(capsys, "gateway", "smollm2", *options, code=code)


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused(capsys, "gateway", "smollm2", "--initial-peers", NOWHERE, "--port", port, code=1)
    assert f"can't listen on 127.0.0.1, port {port}: another program listens there; give another --port" in said


def test_without_a_name_there_must_be_a_model_here(
    capsys: pytest.CaptureFixture[str], nobody: Bystander, peer: ServeProcess, cache: Path
) -> None:
    options = ("--port", "0", "--cache-dir", str(cache))
    assert "This swarm serves nothing" in refused(capsys, "gateway", "--initial-peers", nobody.address, *options)
    address = peer.ready.addresses[0]
    assert run_said(capsys, "gateway", "--initial-peers", address, *options).endswith(
        "This swarm serves tiny, of which this machine has none: name the models to serve"
    )


def run_said(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The last line of a command that is refused after it has said other things."""
    from swarm.cli import run

    assert run(command) == 2
    return capsys.readouterr().err.splitlines()[-1]


# --- what becomes of it ---


@pytest.fixture
def alone() -> Iterator[Bystander]:
    """A swarm of this test's own, in which nobody serves anything yet."""
    with Bystander() as bystander:
        yield bystander


def test_a_gateway_waits_for_its_swarm_and_its_clients_for_the_next_gateway(
    model: Path, cache: Path, alone: Bystander
) -> None:
    with gateway(model, cache, alone.address) as first:
        ready = first.wait_ready()
        check_that_nobody_serves(first, ready.url)
        openai = OpenAI(base_url=ready.base_url, api_key="none", max_retries=50)
        options = ("--cache-dir", str(cache), "--kv-cache-tokens", "640")
        with ServePeer(model, *options, entry=["--initial-peers", alone.address]) as peer:
            peer.wait_ready()
            stream = openai.completions.create(**LONG, stream=True)  # the client tries again until it is answered
            for _ in range(300):
                next(stream)  # by now the peer keeps 300 of its 640 tokens for this
            first.kill()
            first.wait()
            with ThreadPoolExecutor(1) as threads:
                answer = threads.submit(openai.completions.create, **LONG)
                with gateway(model, cache, alone.address, f"--port={ready.port}") as second:
                    second.wait_ready()
                    assert answer.result(LIMIT).usage.completion_tokens == LONG["max_tokens"]
                    check_that_it_leaves_at_the_second_signal(second, openai)


def check_that_nobody_serves(process: GatewayProcess, url: str) -> None:
    (said,) = [event for event in process.events if event.get("event") == "ready"]
    assert said["models"] == [{"id": "tiny", "ready": False, "reason": "no peer serves tiny at the moment"}]
    with httpx2.Client(base_url=url, timeout=LIMIT) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").json()["data"][0]["swarm"]["ready"] is False
        assert client.get("/ready").status_code == 503
        missing = client.post("/v1/completions", json=LONG)
        assert (missing.status_code, missing.json()["error"]["code"]) == (503, "missing_blocks")


def check_that_it_leaves_at_the_second_signal(process: GatewayProcess, openai: OpenAI) -> None:
    with openai.completions.create(**LONG, stream=True) as stream:
        next(iter(stream))
        process.terminate()
        process.wait_line("leaving; running answers get 30 s")
        process.terminate()
        assert process.wait(LIMIT) == 0
