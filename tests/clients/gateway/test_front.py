"""What every request passes before it is answered, and what is said of it afterwards."""

import logging
import socket

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clients.gateway.admission import Ticket
from clients.gateway.answering import answering
from clients.gateway.keys import parse_keys
from clients.gateway.policy import LOOPBACK, Policy
from clients.gateway.served import Served
from tests.clients.gateway.live import LiveGateway

KEY = "sk-alice-0123456789abcdef"


async def size(request: Request, ticket: Ticket) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def broken(request: Request) -> Response:
    raise RuntimeError("the secret of the house")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::1", ""])
def test_other_names_for_this_machine_are_refused(live: LiveGateway, host: str) -> None:
    refused = httpx2.get(f"{live.url}/health", headers={"Host": host})
    assert refused.status_code == 403
    assert "--allow-host" in refused.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000"])
def test_the_usual_names_are_not(live: LiveGateway, host: str) -> None:
    assert httpx2.get(f"{live.url}/health", headers={"Host": host}).status_code == 200


def test_pages_from_elsewhere_may_not_use_the_gateway(live: LiveGateway) -> None:
    for origin in ("https://evil.example", "null"):
        refused = httpx2.post(f"{live.base_url}/chat/completions", headers={"Origin": origin})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_origin")
    own = httpx2.get(f"{live.url}/health", headers={"Origin": live.url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


def test_pages_that_were_allowed_may(played: Served) -> None:
    policy = Policy(hosts=LOOPBACK, origins=("https://chat.example",))
    with LiveGateway([played], policy=policy, keys=parse_keys([KEY])) as live:
        asked = {
            "Origin": "https://chat.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = httpx2.options(f"{live.base_url}/nothing", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        plain = httpx2.get(f"{live.url}/health", headers={"Origin": "https://chat.example"})
        assert plain.headers["access-control-allow-origin"] == "https://chat.example"
        assert httpx2.get(f"{live.url}/health", headers={"Origin": "https://other.example"}).status_code == 403


def test_a_body_has_a_limit(played: Served) -> None:
    with LiveGateway([played], policy=Policy(body_bytes=1000)) as live:
        live.add(Route("/v1/size", answering(size), methods=["POST"]))
        assert httpx2.post(f"{live.base_url}/size", content=b"x" * 1000).text == "1000"
        refused = httpx2.post(f"{live.base_url}/size", content=b"x" * 1001)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
        pieces = httpx2.post(f"{live.base_url}/size", content=iter([b"x" * 600] * 2))
        assert pieces.status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(played: Served) -> None:
    with LiveGateway([played], policy=Policy(body_seconds=0.05)) as live:
        live.add(Route("/v1/size", answering(size), methods=["POST"]))
        with socket.create_connection(("127.0.0.1", live.port)) as client:
            client.sendall(b"POST /v1/size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
            assert client.recv(64).startswith(b"HTTP/1.1 408 ")


def test_a_fault_of_ours_is_a_number_that_the_log_knows(live: LiveGateway, caplog: pytest.LogCaptureFixture) -> None:
    live.add(Route("/v1/broken", broken))
    answer = httpx2.get(f"{live.base_url}/broken")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    number = answer.headers["x-request-id"]
    assert number in answer.json()["error"]["message"]
    told = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert [number in entry.getMessage() for entry in told] == [True]
    assert told[0].exc_info is not None


def test_the_log_has_a_line_a_request_without_what_is_private(played: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="clients.gateway")
    with LiveGateway([played], keys=parse_keys([f"{KEY} name=alice"])) as live:
        live.add(Route("/v1/size", answering(size), methods=["POST"]))
        httpx2.post(f"{live.base_url}/size?q=private", content=b"private", headers={"Authorization": f"Bearer {KEY}"})
    (entry,) = [entry for entry in caplog.records if entry.name == "clients.gateway.front"]
    fields = entry.fields  # type: ignore[attr-defined]
    assert {name: fields[name] for name in ("method", "path", "status", "key")} == {
        "method": "POST",
        "path": "/v1/size",
        "status": 200,
        "key": "alice",
    }
    assert KEY not in caplog.text
    assert "private" not in str(fields)


def test_health_is_logged_quietly(live: LiveGateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="clients.gateway")
    httpx2.get(f"{live.url}/health")
    live.wait_for(lambda: bool(caplog.records))
    assert [entry.levelno for entry in caplog.records] == [logging.DEBUG]
