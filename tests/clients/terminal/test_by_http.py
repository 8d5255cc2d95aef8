import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from clients.events import ChainChanged, PeerLost, Step, Waiting
from clients.gateway.sse import DONE, SwarmComments, comment
from clients.terminal.backend import ChainNow, Ended, Happening, HopNow, Lost, Pace, Pausing, Text
from clients.terminal.by_http import ByHttp
from clients.terminal.conversation import Choosing, Conversation
from routing.chains import Hop
from swarm.errors import Busy, NetworkError, ProtocolError, SwarmError, UsageError
from swarm.ids import PeerId, Span
from swarm.messages import Contact
from tests.clients.terminal.scripted import Said, Scripted, chunk, refusal, scripted, usage, whole

HI = Conversation("Be brief.").asked("Hi").messages
ADA = Hop(Contact(PeerId("12D3-peer-of-ada"), ()), Span(0, 4), 0.1, name="ada\x1b[2J")


@contextmanager
def backend(server: Scripted, *, api_key: str | None = None, patience: float = 0.0) -> Iterator[ByHttp]:
    with closing(ByHttp(server.url, None, api_key=api_key, patience=patience)) as made:
        yield made


def answer(server: Scripted, *, patience: float = 0.0) -> list[Happening]:
    with backend(server, patience=patience) as made:
        return list(made.answer(HI, Choosing(seed=3)))


def test_question_is_asked_as_applications_do() -> None:
    with scripted(whole("Hel", "lo")) as server, backend(server, api_key="secret") as made:
        assert made.models() == ("tiny", "other")
        assert list(made.answer(HI, Choosing(temperature=0, max_new_tokens=7, seed=3))) == [
            Text("Hel"),
            Text("lo"),
            Ended("stop", prompt=9, cached=4, tokens=2),
        ]
        (asked,) = server.asked
        assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert (asked["model"], asked["max_tokens"], asked["seed"], asked["temperature"]) == ("tiny", 7, 3, 0)
        assert set(server.keys) == {"Bearer secret"}


def test_comments_of_a_gateway_tell_of_the_chain() -> None:
    comments = SwarmComments()
    events = [
        ChainChanged((ADA,), (), 0.5, "begun"),
        PeerLost(ADA.peer, "it is gone"),
        Waiting("nobody has room", 2.0),
        ChainChanged((ADA,), (ADA.peer,), 0.25, "mended"),
        Step(0.25, 1, ((1.0, 20.0),)),
    ]
    body = b"".join([*map(comments.of, events), comment("alive"), chunk("Hi"), chunk(reason="length"), DONE])
    with scripted(Said(body)) as server:
        hops = (HopNow("ada\ufffd[2J", "0:4"),)
        assert answer(server) == [
            ChainNow(hops, 0.5, mended=False),
            Lost("ada\ufffd[2J", "it is gone"),
            Pausing("nobody has room", 2.0),
            ChainNow(hops, 0.25, mended=True),
            Pace(0.25, (0.021,)),
            Text("Hi"),
            Ended("length"),
        ]


def test_comments_that_are_none_are_passed_over() -> None:
    lines = ['{"event": "chain"}', '{"event": "chain", "hops": [3]}', '{"event": "step", "ms": "x"}', '{"event": 3}']
    body = b"".join(comment(f"swarm {line}") for line in lines) + chunk("Hi", "stop") + DONE
    with scripted(Said(body)) as server:
        assert answer(server) == [Text("Hi"), Ended("stop")]


@pytest.mark.parametrize(
    ("said", "kind", "sentence"),
    [
        (refusal(400, "temperature is \x1b[2Jtoo high"), UsageError, "refuses: temperature is .\\[2Jtoo high"),
        (refusal(401, "no such key"), UsageError, "another key: no such key; give --api-key"),
        (refusal(404, "no such model"), UsageError, "no such model"),
        (refusal(429, "too many", ("Retry-After", "7")), Busy, "busy: too many"),
        (refusal(503, "no peers"), Busy, "busy: no peers"),
        (refusal(500, "oh"), NetworkError, "failed: oh"),
        (Said(b"<html>", 502), NetworkError, "status 502"),
        (Said(chunk("Hel") + b'data: {"error": {"message": "a peer died"}}\n\n'), SwarmError, "broke off: a peer died"),
        (Said(chunk("Hel")), NetworkError, "before it was whole"),
        (Said(b"data: [1]\n\n"), ProtocolError, "ends in /v1"),
        (Said(b"data: " + b"x" * (5 << 20)), ProtocolError, "a line of more than 4 MiB"),
    ],
)
def test_refusals_and_nonsense_are_sentences(said: Said, kind: type[SwarmError], sentence: str) -> None:
    with scripted(said) as server, pytest.raises(kind, match=sentence):
        answer(server)


def test_busy_gateway_is_asked_again_while_patience_lasts() -> None:
    with scripted(refusal(429, "too many", ("Retry-After", "1")), whole("Hi")) as server:
        waiting, text, _ = answer(server, patience=5.0)
        assert waiting == Pausing("the gateway is busy: too many", 1.0)
        assert text == Text("Hi")
        assert len(server.asked) == 2


def test_address_where_nothing_is_or_something_else_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(NetworkError, match=f"nothing answers at http://127.0.0.1:{port}"):
        ByHttp(f"http://127.0.0.1:{port}/v1", None)
    with pytest.raises(UsageError, match="--url is the address"):
        ByHttp("localhost:8000", None)
    with scripted(models={"data": []}) as server, pytest.raises(UsageError, match="serves no model"):
        ByHttp(server.url, None)
    with scripted(models=["what"]) as server, pytest.raises(ProtocolError):
        ByHttp(server.url, None)


def test_answer_that_is_closed_lets_go_of_the_connection() -> None:
    with scripted(Said(chunk("a") * 3), whole("b")) as server, backend(server) as made:
        first = made.answer(HI, Choosing())
        assert next(first) == Text("a")
        first.close()
        assert next(made.answer(HI, Choosing())) == Text("b")


def test_usage_is_told_where_it_is_counted() -> None:
    body = chunk("Hi", "stop") + usage(3, 0, 1) + b"data: " + json.dumps({"choices": "?"}).encode() + b"\n\n" + DONE
    with scripted(Said(body)) as server:
        assert answer(server)[-1] == Ended("stop", 3, 0, 1)
