"""The server under the application: its socket, its connections, its end."""

import asyncio
import datetime
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from clients.events import Waiting
from clients.gateway.connections import HEAD_BYTES, BoundedConnection
from clients.gateway.served import Served
from clients.gateway.server import check_certificate, listen
from swarm.errors import NetworkError, UsageError
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def test_a_port_that_is_taken_is_said_in_a_sentence() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(NetworkError, match="another program listens there; give"):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.name.invalid"])
def test_an_address_that_is_not_ours_is_said_in_a_sentence(host: str) -> None:
    with pytest.raises(NetworkError, match="give another --host"):
        listen(host, 0)


# --- the end ---


def test_running_answers_finish_and_new_ones_are_not_taken(live: LiveGateway, completer: PlayedCompleter) -> None:
    live.call(completer.gate.clear)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx2.post, f"{live.base_url}/chat/completions", json=ASK)
        live.wait_for(lambda: len(completer.answers) == 1)
        ended = live.end(30)
        live.wait_for(lambda: not live.listening)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{live.url}/health")
        assert not ended.done()
        live.call(completer.gate.set)
        assert answer.result(30).json()["choices"][0]["message"]["content"] == "Hello there."
        ended.result(30)


def test_answers_that_take_too_long_are_cut_short(live: LiveGateway, completer: PlayedCompleter) -> None:
    live.call(completer.gate.clear)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx2.post, f"{live.base_url}/chat/completions", json=ASK)
        live.wait_for(lambda: len(completer.answers) == 1)
        live.end(0).result(30)
        assert completer.answers[0].closed
        assert answer.result(30).status_code == 503
        assert answer.result().headers["retry-after"] == "5"


def test_a_second_word_ends_the_wait(live: LiveGateway, completer: PlayedCompleter) -> None:
    live.call(completer.gate.clear)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx2.post, f"{live.base_url}/chat/completions", json=ASK)
        live.wait_for(lambda: len(completer.answers) == 1)
        ended = live.end(3600)
        live.wait_for(lambda: not live.listening)
        ended.cancel()
        assert answer.result(30).status_code == 503


def test_a_stream_that_takes_too_long_is_cut(live: LiveGateway, completer: PlayedCompleter) -> None:
    completer.before = [Waiting("nobody has room", 1.0)]  # a comment, so that the stream begins
    live.call(completer.gate.clear)
    with httpx2.stream("POST", f"{live.base_url}/chat/completions", json=ASK | {"stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(": swarm ")
        live.end(0).result(30)
        with pytest.raises(httpx2.TransportError):
            list(lines)


# --- connections ---


def test_a_head_without_end_is_refused(live: LiveGateway) -> None:
    endless = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * (1000 * HEAD_BYTES)
    with socket.create_connection(("127.0.0.1", live.port)) as client, pytest.raises(OSError, match=r"reset|pipe"):
        client.sendall(endless)


def test_a_large_body_is_no_large_head(live: LiveGateway) -> None:
    answer = httpx2.post(f"{live.base_url}/chat/completions", content=b"x" * (4 * HEAD_BYTES))
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


class Hasty(BoundedConnection):
    head_seconds = 0.02


@pytest.mark.anyio
@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:"])
async def test_a_head_that_does_not_come_is_not_waited_for(begun: bytes) -> None:
    config = uvicorn.Config(PlainTextResponse("hi"), http=Hasty, lifespan="off", log_config=None)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Hasty(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(begun)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


@pytest.mark.anyio
async def test_connections_that_are_kept_are_answered_again() -> None:
    config = uvicorn.Config(PlainTextResponse("hi"), http=Hasty, lifespan="off", log_config=None)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Hasty(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nhi"), 30)).startswith(b"HTTP/1.1 200 ")
        writer.close()


# --- https ---


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """For 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def test_answers_over_https(played: Served, certificate: tuple[Path, Path]) -> None:
    check_certificate(*certificate)
    trust = ssl.create_default_context(cafile=certificate[0])
    trust.check_hostname = False  # the certificate names the address as people do, not as an alternative name
    with LiveGateway([played], certificate=certificate) as live:
        answer = httpx2.post(f"{live.base_url}/chat/completions", json=ASK, verify=trust)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello there."


def test_files_that_are_no_certificate_are_refused(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    key.write_text("no key")
    with pytest.raises(UsageError, match=r"--tls-key .* can't be used together"):
        check_certificate(cert, key)
