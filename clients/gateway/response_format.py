"""Reading what a request says about the form of its answer: OpenAI's `response_format`, and vLLM's names for the same
and more (`structured_outputs` with `json`, `regex`, `choice` or `json_object`; `guided_json` and so on)."""

import json
from collections.abc import Callable
from typing import Any

from llguidance import regex_to_lark

from clients.gateway.fields import Fields
from clients.gateway.grammar import MOST_GRAMMAR, Grammar, json_rule

__all__ = ["any_object", "read_response_format", "read_schema_format"]

MOST_CHOICES = 1024
_KINDS = ("text", "json_object", "json_schema", "regex")


def read_response_format(body: Fields) -> Grammar | None:
    """None where the answer is free. Raises ApiError 400."""
    asked = [grammar for grammar in (_response_format(body), *_guided(body), *_structured(body)) if grammar]
    if len(asked) > 1:
        message = f"give '{asked[0].param}' or '{asked[1].param}', not both"
        raise body.refusal(asked[1].param, message, "conflicting_parameters")
    return asked[0] if asked else None


def _response_format(body: Fields) -> Grammar | None:
    asked = body.nested("response_format")
    if asked is None:
        return None
    kind = asked.one_of("type", _KINDS, "text")
    if kind == "json_schema":
        return read_schema_format(Fields(asked.need("json_schema"), asked.path("json_schema")))
    if kind == "regex":
        return _regex(asked, "pattern")
    return any_object(asked.path("type")) if kind == "json_object" else None


def read_schema_format(asked: Fields) -> Grammar:
    """A named schema: an object with `schema` and `strict`."""
    return _schema(asked, "schema", strict=asked.flag("strict"))


def _guided(body: Fields) -> list[Grammar]:
    _refuse(body, "guided_grammar")
    return [read(body, f"guided_{name}") for name, read in _READERS.items() if body.has(f"guided_{name}")]


def _structured(body: Fields) -> list[Grammar]:
    asked = body.nested("structured_outputs")
    if asked is None:
        return []
    _refuse(asked, "grammar")
    _refuse(asked, "structural_tag")
    objects = [any_object(asked.path("json_object"))] if asked.flag("json_object") else []
    return objects + [read(asked, name) for name, read in _READERS.items() if asked.has(name)]


def _refuse(asked: Fields, name: str) -> None:
    if asked.has(name):
        message = f"'{asked.path(name)}' is not supported; a JSON schema, a regex or a list of choices is"
        raise asked.refusal(name, message, "unsupported_parameter")


def any_object(param: str) -> Grammar:
    """What `param` asks for: JSON, an object."""
    return Grammar(f"start: {json_rule({'type': 'object'}, strict=True)}", param)


def _schema(asked: Fields, name: str, *, strict: bool = False) -> Grammar:
    """A schema, as an object or as its JSON."""
    schema: Any = asked.need(name)
    if isinstance(schema, str):
        try:
            schema = json.loads(asked.need_text(name, most=MOST_GRAMMAR))
        except (ValueError, RecursionError) as error:
            raise asked.refusal(name, f"'{asked.path(name)}' is no JSON: {error}") from error
    rule = json_rule(Fields(schema, asked.path(name)).values, strict=strict)
    return Grammar(f"start: {rule}", asked.path(name))


def _regex(asked: Fields, name: str) -> Grammar:
    pattern = regex_to_lark(asked.need_text(name, most=MOST_GRAMMAR))
    return Grammar(f"start: ANSWER\nANSWER: /{pattern}/", asked.path(name))


def _choice(asked: Fields, name: str) -> Grammar:
    options = asked.entries(name, most=MOST_CHOICES)
    if not options or not all(isinstance(option, str) and option for option in options):
        raise asked.refusal(name, f"'{asked.path(name)}' is a list of texts, none empty")
    quoted = " | ".join(json.dumps(option, ensure_ascii=False) for option in options)
    return Grammar(f"start: {quoted}", asked.path(name))


_READERS: dict[str, Callable[[Fields, str], Grammar]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
}
