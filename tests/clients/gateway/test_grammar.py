"""Whatever a model prefers, its answer keeps to the grammar that was asked for."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from clients.completion.request import Constraint
from clients.gateway.errors import ApiError
from clients.gateway.fields import Fields
from clients.gateway.grammar import MOST_GRAMMAR, Grammars
from clients.gateway.response_format import read_response_format
from clients.gateway.served import Served
from swarm.errors import UsageError
from tests.clients.gateway.bytes_tokenizer import END, VOCAB
from tests.clients.gateway.drawn import draw

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/City"},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 7}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 5},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Rome", "São Paulo"]}},
}


def schema_format(schema: object, *, strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": strict, "schema": schema}}


async def compiled(served: Served, **body: object) -> Constraint:
    make = await Grammars().compile(served, read_response_format(Fields(body)))
    assert make is not None
    return make()


def answer(constraint: Constraint, tokenizer: PreTrainedTokenizerFast, *, seed: int, most: int = 400) -> str:
    """What noise says under `constraint`; it must come to an end."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    for _ in range(most):
        token = draw(constraint, VOCAB, generator)
        if token == END:
            return str(tokenizer.decode(tokens))
        tokens.append(token)
    raise AssertionError(f"no end after {tokenizer.decode(tokens)!r}")


@pytest.mark.anyio
@pytest.mark.parametrize("strict", [True, False])
async def test_noise_keeps_to_a_schema(played: Served, tokenizer: PreTrainedTokenizerFast, strict: bool) -> None:
    make = await Grammars().compile(
        played, read_response_format(Fields({"response_format": schema_format(SCHEMA, strict=strict)}))
    )
    assert make is not None
    for seed in range(5):
        value = json.loads(answer(make(), tokenizer, seed=seed))
        assert value["city"] in ("Rome", "São Paulo")
        assert len(value["days"]) <= 3
        assert all(day in range(1, 8) for day in value["days"])
        assert value.keys() <= {"city", "days", "note"}


@pytest.mark.anyio
async def test_noise_keeps_to_a_regex(played: Served, tokenizer: PreTrainedTokenizerFast) -> None:
    pattern = r"\d{2}/(a|b+)?"
    for body in ({"response_format": {"type": "regex", "pattern": pattern}}, {"guided_regex": pattern}):
        text = answer(await compiled(played, **body), tokenizer, seed=1)
        assert re.fullmatch(pattern, text)


@pytest.mark.anyio
async def test_noise_chooses_among_choices(played: Served, tokenizer: PreTrainedTokenizerFast) -> None:
    options = ['say "no"', "oui\n", "да"]
    for body in ({"guided_choice": options}, {"structured_outputs": {"choice": options}}):
        assert answer(await compiled(played, **body), tokenizer, seed=2) in options


@pytest.mark.anyio
async def test_any_json_object_is_an_object(played: Served, tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = await compiled(played, response_format={"type": "json_object"})
    logits = torch.zeros(VOCAB)
    constraint.mask(logits)
    (brace,) = tokenizer.encode("{")
    assert logits.isfinite().nonzero().flatten().tolist() == [brace]
    for token in tokenizer.encode('{"a": [1,\n  {"b": null}]}'):
        constraint.accept(token)
    logits = torch.zeros(VOCAB)
    constraint.mask(logits)
    assert logits.isfinite().nonzero().flatten().tolist() == [END]


@pytest.mark.anyio
async def test_every_end_token_may_end(played: Served, tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = await compiled(replace(played, end_tokens=frozenset({1, END})), guided_choice=["a"])
    constraint.accept(tokenizer.encode("a")[0])
    logits = torch.zeros(VOCAB + 50)  # wider than the tokenizer, as padded heads are
    constraint.mask(logits)
    assert logits.isfinite().nonzero().flatten().tolist() == [1, END]


@pytest.mark.anyio
async def test_choices_do_not_share_their_place(played: Served, tokenizer: PreTrainedTokenizerFast) -> None:
    make = await Grammars().compile(played, read_response_format(Fields({"guided_choice": ["ab"]})))
    assert make is not None
    first, second = make(), make()
    first.accept(tokenizer.encode("a")[0])
    logits = torch.zeros(VOCAB)
    second.mask(logits)
    assert logits.isfinite().nonzero().flatten().tolist() == tokenizer.encode("a")


@pytest.mark.anyio
async def test_head_that_lacks_what_must_come_is_an_error(played: Served) -> None:
    constraint = await compiled(played, guided_choice=["z"])
    with pytest.raises(UsageError, match="can't go on"):
        constraint.mask(torch.zeros(4))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": schema_format([])}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"type": "strange"})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"$ref": "http://x/y"})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"uniqueItems": True})}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "regex", "pattern": "("}}, "response_format.pattern"),
        ({"guided_regex": "x" * (MOST_GRAMMAR - 1)}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"properties": {f"p{n}": {"pattern": "(a|b)*a"} for n in range(3000)}}}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"guided_grammar": "root ::= [a]"}, "guided_grammar"),
        ({"structured_outputs": {"json": {"type": 1}}}, "structured_outputs.json"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
async def test_what_is_no_grammar_is_refused(played: Served, body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        await compiled(played, **body)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.anyio
async def test_what_is_not_known_of_a_lenient_schema_is_left_out(
    played: Served, tokenizer: PreTrainedTokenizerFast
) -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": [1]}, "minItems": 1, "maxItems": 2}
    constraint = await compiled(played, response_format=schema_format(schema, strict=False))
    assert json.loads(answer(constraint, tokenizer, seed=3))[0] == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "silent", [object(), PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, "a")))]
)
async def test_a_tokenizer_that_tells_nothing_of_its_tokens_is_refused(played: Served, silent: object) -> None:
    slow = replace(played, tokenizer=silent)
    grammars = Grammars()
    grammars.prepare(slow)
    with pytest.raises(UsageError, match="can't be told which tokens fit"):
        await grammars.compile(slow, read_response_format(Fields({"guided_choice": ["a"]})))


@pytest.mark.anyio
async def test_free_answers_need_no_grammar(played: Served) -> None:
    for body in ({}, {"response_format": {"type": "text"}}, {"structured_outputs": {"json_object": False}}):
        assert await Grammars().compile(played, read_response_format(Fields(body))) is None
