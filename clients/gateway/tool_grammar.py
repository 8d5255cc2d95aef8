"""A grammar of the calls that a request's tools allow, as its model writes them."""

import json
import re
from collections.abc import Callable

from clients.gateway.grammar import Grammar, json_rule
from clients.gateway.tool_formats import Format, Way
from clients.gateway.tools import Tool, Tools

__all__ = ["call_grammar"]

MOST_CALLS = 8  # in one answer; weak models that have to call would go on for ever
_TEXT = r"TEXT: /(.|\n)*/"


def call_grammar(form: Format, tools: Tools, special: Callable[[str], int | None], answer: Grammar | None) -> Grammar:
    """What is not a call is as `answer` says, or free if that is None. `special` gives the id of a text that is a
    special token."""
    parts = tuple((tool.param, json_rule(tool.parameters, strict=tool.strict)) for tool in tools.offered)
    lines = [
        _start(form, tools, special, answer),
        f"call: {' | '.join(f'f{at}' for at in range(len(parts)))}",
        *(f"f{at}: {_call(form, tool, f'a{at}', special)}" for at, tool in enumerate(tools.offered)),
        *(f"a{at}: {rule}" for at, (_, rule) in enumerate(parts)),
    ]
    if answer is not None and not tools.required:
        lines.append(answer.lark.replace("start:", "answer:", 1))
        parts += answer.parts
    return Grammar("\n".join(lines), tools.param, parts)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _marker(text: str, special: Callable[[str], int | None]) -> str:
    number = special(text)
    return _quoted(text) if number is None else f"<[{number}]>"


def _call(form: Format, tool: Tool, arguments: str, special: Callable[[str], int | None]) -> str:
    """Name and arguments."""
    if form.way is Way.NAMED:
        return f"{_quoted(tool.name)} {_marker(form.key, special)} {arguments}"
    head = f'{{"name": {_quoted(tool.name)}, {_quoted(form.key)}: '
    return f'{_quoted(head)} {arguments} "}}"'


def _start(form: Format, tools: Tools, special: Callable[[str], int | None], answer: Grammar | None) -> str:
    most = MOST_CALLS if tools.parallel and form.several else 1
    if tools.required:
        return f"start: calls\n{_calls(form, most, special)}"
    if answer is not None:
        return f"start: calls | answer\n{_calls(form, most, special)}"
    return _among_text(form, most, special)


def _body(form: Format, most: int, special: Callable[[str], int | None]) -> str:
    """What follows the mark at the begin."""
    match form.way:
        case Way.TAGGED:
            return f'"\\n" call "\\n" {_marker(form.end, special)}'
        case Way.LISTED:
            more = _more('", " call', most)
            return f'" "? "[" call{more} "]"'
    return "call"


def _calls(form: Format, most: int, special: Callable[[str], int | None]) -> str:
    """Nothing but calls."""
    if form.way is Way.BARE:
        return "calls: call"
    between = '"\\n" ' if form.way is Way.TAGGED else ""
    more = "" if form.way is Way.LISTED else _more(f"{between}one", most)
    return f"calls: one{more}\none: {_marker(form.begin, special)} {_body(form, most, special)}"


def _more(rule: str, most: int) -> str:
    """As many of `rule` as follow the first of `most`."""
    return f" ({rule}){{0,{most - 1}}}" if most > 1 else ""


def _among_text(form: Format, most: int, special: Callable[[str], int | None]) -> str:
    """Calls, if any, in or after free text; what begins like one is one."""
    if form.way is Way.BARE:
        begin = r"[ \n]*(" + re.escape(form.begin) + r')?[ \n]*\{[ \n]*"(name|type)"'
        return f"start: call | NO_CALL\nNO_CALL: /(.|\\n)*/ & ~/{begin}(.|\\n)*/"
    again = 1 if form.way is Way.LISTED else most
    body = _body(form, most, special)
    if (begin_token := special(form.begin)) is not None:  # any token but that one is text
        return (
            f"start: one{{0,{again}}} text\none: text {_marker(form.begin, special)} {body}\ntext: <[^{begin_token}]>*"
        )
    no_call = f"NO_CALL: /(.|\\n)*/ & ~/(.|\\n)*{re.escape(form.begin)}(.|\\n)*/"
    opened = f"opened[lazy]: TEXT {_quoted(form.begin)}"
    return f"start: one{{0,{again}}} NO_CALL\none: opened {body}\n{opened}\n{_TEXT}\n{no_call}"
