"""From tokens to what is sent, over an answer that is played."""

from asyncio import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.completion.generation import Began, Token
from clients.completion.request import Request
from clients.events import Waiting
from clients.gateway.answer import Answer, AnswerEvent, Done, Piece, Usage, collect
from tests.clients.gateway.bytes_tokenizer import END, bytes_tokenizer
from tests.clients.gateway.played import Played
from tests.clients.gateway.test_stops import cut

pytestmark = pytest.mark.anyio
TOKENIZER = bytes_tokenizer()


def played(text: str | list[int], *, choices: int = 1, end: bool = True) -> Played:
    gate = Event()
    gate.set()
    request = Request(prompt=(5, 6), max_new_tokens=1000, choices=choices, stop_tokens=frozenset({END}), logprobs=0)
    tokens = TOKENIZER.encode(text) if isinstance(text, str) else text
    return Played(request, [*tokens, END] if end else tokens, gate)


def answer(generation: Played, *stops: str, choices: int = 1) -> Answer:
    return Answer(
        generation,
        TOKENIZER,
        prompt_tokens=2,
        choices=choices,
        stop_strings=stops,
        stop_tokens=frozenset({END}),
    )


async def events(answer: Answer) -> list[AnswerEvent]:
    return [event async for event in answer]


async def test_pieces_come_as_tokens_do_and_the_end_token_shows_nothing() -> None:
    got = await events(answer(played("Hi")))
    assert [e.text for e in got if isinstance(e, Piece)] == ["H", "i"]
    assert isinstance(got[0], Began)
    assert got[-1] == Done(0, "stop")


async def test_an_answer_that_reaches_its_limit_says_so_and_loses_nothing() -> None:
    (whole,) = await collect(answer(played("to b", end=False), "to be"))
    assert (whole.text, whole.reason, len(whole.tokens)) == ("to b", "length", 4)


async def test_a_stop_string_ends_its_choice_and_the_generation_of_it() -> None:
    generation = played("one two three", choices=2)
    wholes = await collect(answer(generation, " tw", choices=2), 2)
    assert [(whole.text, whole.reason, whole.stop) for whole in wholes] == [("one", "stop", " tw")] * 2
    assert generation.ended == {0, 1}


async def test_usage_counts_every_token_that_was_computed() -> None:
    told = answer(played("one two", choices=2), " t", choices=2)
    await collect(told, 2)
    assert told.usage == Usage(prompt=2, cached=0, completion=10)


async def test_what_the_swarm_does_is_passed_on() -> None:
    generation = played("x")
    generation.before = (Waiting("all are busy", 1.0),)
    assert Waiting("all are busy", 1.0) in await events(answer(generation))


@given(st.text("aé€😀 b", max_size=12), st.lists(st.text("aé€😀 b", min_size=1, max_size=3), max_size=3))
async def test_an_answer_is_its_text_cut_at_the_first_stop_string(text: str, stops: list[str]) -> None:
    got = await events(answer(played(text), *stops))
    pieces = [event for event in got if isinstance(event, Piece)]
    assert "".join(piece.text for piece in pieces) == cut(text, stops)
    assert all("\N{REPLACEMENT CHARACTER}" not in piece.text for piece in pieces)
    assert sent_bytes(pieces) == cut(text, stops).encode()


def sent_bytes(pieces: list[Piece]) -> bytes:
    """Those that the tokens of `pieces` stand for."""
    tokens: list[Token] = [token for piece in pieces for token in piece.tokens]
    return bytes(TOKENIZER.decode([token.id for token in tokens]), "utf-8")
