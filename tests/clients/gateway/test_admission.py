"""Requests wait in a queue with an end."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clients.completion.generation import Token
from clients.completion.request import Request as Completion
from clients.gateway.admission import Admission, Ticket
from clients.gateway.allowance import Limits, User
from clients.gateway.answering import answering
from clients.gateway.errors import ApiError
from clients.gateway.gateway import gateway_of
from clients.gateway.keys import parse_keys
from clients.gateway.metrics import Metrics
from clients.gateway.served import Served
from swarm.ids import Span
from tests.clients.gateway.live import LiveGateway, record, view_of
from tests.clients.gateway.played import PlayedCompleter

ALICE = "sk-alice-0123456789abcdef"


async def ask(request: Request, ticket: Ticket) -> Response:
    served = gateway_of(request).models.get("tiny")
    generation = ticket.submit(served, Completion(prompt=(5, 6), max_new_tokens=64))
    tokens = [event.id async for event in generation if isinstance(event, Token)]
    return PlainTextResponse(served.tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.fixture
def narrow(played: Served) -> Iterator[LiveGateway]:
    """Answers four requests at once, and lets 64 wait; POST /ask asks it."""
    with LiveGateway([played], running=4, queue=64) as live:
        live.add(Route("/ask", answering(ask), methods=["POST"]))
        yield live


@pytest.mark.anyio
async def test_two_hundred_requests_on_a_queue_of_64_get_answers_or_clean_429s(
    narrow: LiveGateway, completer: PlayedCompleter
) -> None:
    completer.gate.clear()
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(base_url=narrow.url, limits=limits, timeout=60) as client:
        requests = [asyncio.create_task(client.post("/ask")) for _ in range(200)]
        await asyncio.to_thread(narrow.wait_for, lambda: narrow.gateway.admission.waiting == 64)
        while sum(request.done() for request in requests) < 132:  # noqa: ASYNC110 (each tells only itself)
            await asyncio.sleep(0.01)
        narrow.call(completer.gate.set)
        answers = await asyncio.gather(*requests)
    assert Counter(answer.status_code for answer in answers) == {200: 68, 429: 132}
    assert {answer.text for answer in answers if answer.status_code == 200} == {"Hello there."}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 30 for answer in refused)
    narrow.wait_for(lambda: narrow.gateway.admission.running == narrow.gateway.admission.waiting == 0)


def test_clients_that_go_away_leave_the_queue(narrow: LiveGateway, completer: PlayedCompleter) -> None:
    narrow.call(completer.gate.clear)
    post = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    admission = narrow.gateway.admission
    clients = [socket.create_connection(("127.0.0.1", narrow.port)) for _ in range(10)]
    for client in clients:
        client.sendall(post)
    narrow.wait_for(lambda: (admission.running, admission.waiting) == (4, 6))
    for client in clients[4:]:
        client.close()
    narrow.wait_for(lambda: admission.running + admission.waiting == 4)
    for client in clients[:4]:
        client.close()
    narrow.wait_for(lambda: admission.running + admission.waiting == 0)
    narrow.call(completer.gate.set)
    assert httpx2.post(f"{narrow.url}/ask").text == "Hello there."


def test_a_body_that_is_not_sent_takes_no_turn_from_others(narrow: LiveGateway) -> None:
    head = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", narrow.port)) for _ in range(8)]
    for client in slow:
        client.sendall(head)
    narrow.wait_for(lambda: narrow.gateway.admission.waiting == 8)
    assert httpx2.post(f"{narrow.url}/ask").text == "Hello there."
    for client in slow:
        client.close()
    narrow.wait_for(lambda: narrow.gateway.admission.waiting == 0)


def test_limits_of_a_key_are_its_own(played: Served, completer: PlayedCompleter) -> None:
    given = parse_keys([f"{ALICE} name=alice requests=2", "sk-bob-0123456789abcdef"])
    alice, bob = {"x-api-key": ALICE}, {"x-api-key": "sk-bob-0123456789abcdef"}
    with LiveGateway([played], keys=given, clock=lambda: 0.0) as live:
        live.add(Route("/v1/ask", answering(ask), methods=["POST"]))
        asked = [httpx2.post(f"{live.base_url}/ask", headers=alice) for _ in range(3)]
        assert [answer.status_code for answer in asked] == [200, 200, 429]
        assert asked[2].json()["error"]["code"] == "rate_limit_exceeded"
        assert asked[2].headers["retry-after"] == "30"
        assert httpx2.post(f"{live.base_url}/ask", headers=bob).status_code == 200


def test_prompts_and_answers_count_as_tokens(played: Served, completer: PlayedCompleter) -> None:
    cost = 2 + len(completer.tokens)
    given = parse_keys([f"{ALICE} tokens={2 * cost}"])
    headers = {"x-api-key": ALICE}
    with LiveGateway([played], keys=given, clock=lambda: 0.0) as live:
        live.add(Route("/v1/ask", answering(ask), methods=["POST"]))
        asked = [httpx2.post(f"{live.base_url}/ask", headers=headers).status_code for _ in range(3)]
    assert asked == [200, 200, 429]


def test_missing_blocks_are_said_at_once(played: Served, completer: PlayedCompleter) -> None:
    views = [view_of(record("ada", Span(0, 2)))]
    torn = Served(
        name="tiny",
        created=0,
        tokenizer=played.tokenizer,
        completer=completer,
        max_positions=1024,
        end_tokens=played.end_tokens,
        look=lambda: views[-1],
    )
    with LiveGateway([torn]) as live:
        live.add(Route("/v1/ask", answering(ask), methods=["POST"]))
        refused = httpx2.post(f"{live.base_url}/ask")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["message"] == "no peer serves the blocks 2:4 of tiny at the moment"
        ready = httpx2.get(f"{live.url}/ready")
        assert (ready.status_code, ready.json()["models"][0]["ready"]) == (503, False)
        views.append(view_of(record("ada", Span(0, 2)), record("bela", Span(2, 4))))
        assert httpx2.post(f"{live.base_url}/ask").text == "Hello there."
        assert httpx2.get(f"{live.url}/ready").status_code == 200


@pytest.mark.anyio
async def test_who_waits_too_long_is_told_so() -> None:
    loop = asyncio.get_running_loop()
    admission = Admission(running=1, queue=1, metrics=Metrics(()), clock=loop.time, queue_seconds=0.0)
    user = User("anyone", Limits(), loop.time)
    with admission.enter(user) as first, admission.enter(user) as second:
        async with admission.turn(first):
            with pytest.raises(ApiError, match="Nothing came free") as refused:
                async with admission.turn(second):
                    pass
    assert (refused.value.status, refused.value.code) == (429, "queue_timeout")
    assert admission.waiting == admission.running == 0
