"""Streams: their lines, how they wait, and how they end."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from clients.events import ChainChanged, PeerLost, Step, Waiting
from clients.gateway.errors import ApiError
from clients.gateway.sse import STEPS_EVERY, SwarmComments, comment, data, event, stream
from routing.chains import Hop
from swarm.errors import MissingBlocks
from swarm.ids import PeerId, Span
from swarm.messages import Contact

pytestmark = pytest.mark.anyio


def failed(error: ApiError) -> bytes:
    return data(error.body())


async def sent(lines: AsyncGenerator[bytes, None], keep_alive: float = 30.0) -> list[bytes]:
    response = await stream(lines, failed=failed, keep_alive=keep_alive)
    return [bytes(chunk) async for chunk in response.body_iterator]  # type: ignore[arg-type]


def told(line: bytes) -> dict[str, object]:
    assert line.startswith(b": swarm ")
    assert line.endswith(b"\n\n")
    assert line.count(b"\n") == 2
    value: dict[str, object] = json.loads(line.removeprefix(b": swarm "))
    return value


def test_lines_have_the_grammar_of_events() -> None:
    assert data({"a": "b\né"}) == 'data: {"a":"b\\né"}\n\n'.encode()
    assert event("done", {}) == b"event: done\ndata: {}\n\n"
    assert comment("a\nb\rc") == b": a b c\n\n"


def test_what_the_swarm_does_is_told_in_comments() -> None:
    comments = SwarmComments()
    hop = Hop(Contact(PeerId("peer-of-ada")), Span(0, 4), 0.01, name="\x1b[31mada\n", precision="int8")
    chain = told(comments.of(ChainChanged((hop,), (PeerId("gone"),), 0.5, "it is faster")))
    assert chain["event"] == "chain"
    assert chain["lost"] == ["gone"]
    assert chain["hops"][0]["blocks"] == [0, 4]  # type: ignore[index]
    assert "\x1b" not in chain["hops"][0]["name"]  # type: ignore[index]
    assert told(comments.of(PeerLost(PeerId("x"), "it left")))["reason"] == "it left"
    assert told(comments.of(Waiting("busy", 2.0)))["seconds"] == 2.0


def test_steps_are_told_from_time_to_time() -> None:
    now = 100.0
    comments = SwarmComments(lambda: now)
    step = Step(0.02, 1, ((0.5, 7.25),))
    assert told(comments.of(step)) == {"event": "step", "ms": 20.0, "hops": [[0.5, 7.25]]}
    assert comments.of(step) == b""
    now += STEPS_EVERY
    assert comments.of(step)


async def test_a_failure_before_the_first_line_is_raised() -> None:
    async def lines() -> AsyncGenerator[bytes, None]:
        raise MissingBlocks([1], "nobody holds block 1")
        yield b""

    with pytest.raises(MissingBlocks):
        await sent(lines())


@pytest.mark.parametrize("error", [MissingBlocks([1], "nobody holds block 1"), ValueError("a fault of ours")])
async def test_a_failure_in_mid_stream_is_told_and_ends_it(error: Exception) -> None:
    async def lines() -> AsyncGenerator[bytes, None]:
        yield b"first"
        raise error

    first, last = await sent(lines())
    assert first == b"first"
    assert "message" in json.loads(last.removeprefix(b"data: "))["error"]
    assert b"a fault of ours" not in last


async def test_comments_keep_a_stream_alive_while_it_waits() -> None:
    go = asyncio.Event()

    async def lines() -> AsyncGenerator[bytes, None]:
        await go.wait()
        yield b"at last"

    response = await stream(lines(), failed=failed, begin=0.001, keep_alive=0.001)
    body = response.body_iterator
    assert await anext(body) == comment("waiting")  # type: ignore[arg-type]
    go.set()
    rest = [chunk async for chunk in body if chunk != comment("waiting")]
    assert rest == [b"at last"]


async def test_a_stream_is_closed_where_a_line_of_it_is_left_unread() -> None:
    closed = asyncio.Event()

    async def lines() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            yield b"second"
        finally:
            closed.set()

    response = await stream(lines(), failed=failed)
    body = response.body_iterator
    assert await anext(body) == b"first"  # type: ignore[arg-type]
    for _ in range(5):
        await asyncio.sleep(0)  # the second is ready
    await body.aclose()  # type: ignore[union-attr]
    assert closed.is_set()


async def test_a_stream_that_nobody_reads_any_more_is_closed() -> None:
    closed = asyncio.Event()

    async def lines() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            closed.set()

    response = await stream(lines(), failed=failed)
    body = response.body_iterator
    assert await anext(body) == b"first"  # type: ignore[arg-type]
    waiting = asyncio.ensure_future(anext(body))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert closed.is_set()
