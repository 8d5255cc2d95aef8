"""A request for an answer ends with its client, and takes with it what it has begun."""

import socket

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from clients.completion.generation import Token
from clients.completion.request import Request as Completion
from clients.gateway.admission import Ticket
from clients.gateway.answering import answering
from clients.gateway.gateway import gateway_of
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter


async def whole(request: Request, ticket: Ticket) -> Response:
    """The tokens of an answer, when it is complete."""
    served = gateway_of(request).models.get("tiny")
    generation = ticket.submit(served, Completion(prompt=(5, 6), max_new_tokens=64))
    return JSONResponse([event.id async for event in generation if isinstance(event, Token)])


async def piecemeal(request: Request, ticket: Ticket) -> Response:
    """The same, as they come."""
    served = gateway_of(request).models.get("tiny")
    generation = ticket.submit(served, Completion(prompt=(5, 6), max_new_tokens=64))

    async def lines() -> object:
        yield "begun\n"
        async for event in generation:
            if isinstance(event, Token):
                yield f"{event.id}\n"

    return StreamingResponse(lines(), media_type="text/plain")  # type: ignore[arg-type]


@pytest.fixture
def endpoints(live: LiveGateway) -> LiveGateway:
    """The gateway, with these two beside its own."""
    live.add(Route("/whole", answering(whole), methods=["POST"]))
    live.add(Route("/piecemeal", answering(piecemeal), methods=["POST"]))
    return live


@pytest.mark.parametrize("path", ["/whole", "/piecemeal"])
def test_answers_arrive(endpoints: LiveGateway, completer: PlayedCompleter, path: str) -> None:
    answer = httpx2.post(endpoints.url + path)
    assert answer.status_code == 200
    assert all(str(token) in answer.text for token in completer.tokens)
    endpoints.wait_for(lambda: completer.answers[0].closed)


def test_a_client_that_leaves_ends_an_answer_that_is_not_streamed(
    endpoints: LiveGateway, completer: PlayedCompleter
) -> None:
    endpoints.call(completer.gate.clear)
    with socket.create_connection(("127.0.0.1", endpoints.port)) as client:
        client.sendall(b"POST /whole HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        endpoints.wait_for(lambda: len(completer.answers) == 1)
    endpoints.wait_for(lambda: completer.answers[0].closed)


def test_a_client_that_leaves_ends_a_stream(endpoints: LiveGateway, completer: PlayedCompleter) -> None:
    endpoints.call(completer.gate.clear)
    with httpx2.stream("POST", f"{endpoints.url}/piecemeal") as answer:
        assert next(answer.iter_lines()) == "begun"
    endpoints.wait_for(lambda: completer.answers[0].closed)


def test_method_of_an_answering_route_is_checked(endpoints: LiveGateway) -> None:
    assert httpx2.get(f"{endpoints.url}/whole").status_code == 405
