"""How one model is told of tools, and how it calls them: as its chat template says, else in the format of Hermes,
described in a system message."""

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from clients.gateway.conversation import ToolCall, Turn
from clients.gateway.grammar import Grammar
from clients.gateway.served import Served, Tokenizer
from clients.gateway.tool_calls import CallReader
from clients.gateway.tool_formats import HERMES, format_of
from clients.gateway.tool_grammar import call_grammar
from clients.gateway.tools import Tool, Tools

__all__ = ["Dialect", "Dialects", "Prompt"]

_DESCRIPTION = """You can call functions. They are, one a line:
{tools}

To call one, write its name and its arguments as JSON between these tags:
<tool_call>
{{"name": "the function", "arguments": {{"parameter": "value"}}}}
</tool_call>
Results come between <tool_response> and </tool_response>. Answer without a call when none is needed."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to give to `conversation.encode`."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] | None


class Dialect:
    """That of the model with `tokenizer`. Takes some milliseconds to find out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        known = format_of(_template(tokenizer))
        self._native = known is not None and _shows_tools(tokenizer)  # the template shows tools, calls and results
        self.format = known if known is not None and self._native else HERMES
        added = tokenizer.get_added_vocab()
        self._tokens = {marker: int(added[marker]) for marker in self.format.markers if marker in added}
        special = {marker for marker, token in self._tokens.items() if tokenizer.added_tokens_decoder[token].special}
        self._special = special
        self.shows_special_tokens = bool(special)  # whether calls can be found only where these become text

    def prompt(self, turns: Sequence[Turn], tools: Tools) -> Prompt:
        """The chat as the template can take it, and the tools that are left to it."""
        if self._native:
            shown = tuple(map(_described, tools.offered))
            return Prompt(tuple(self._with_ids(turns)), shown or None)
        plain = _without_tools(turns)
        if tools.offered:
            lines = "\n".join(json.dumps(_described(tool)["function"], ensure_ascii=False) for tool in tools.offered)
            at = next((at for at, turn in enumerate(plain) if turn.role != "system"), len(plain))
            plain.insert(at, Turn("system", _DESCRIPTION.format(tools=lines)))
        return Prompt(tuple(plain), None)

    def grammar(self, tools: Tools, answer: Grammar | None) -> Grammar | None:
        """What the whole answer keeps to, where what is not a call keeps to `answer`."""
        if not tools.offered or (answer is None and not tools.constrained):
            return answer
        return call_grammar(self.format, tools, self._token, answer)

    def reader(self, tools: Tools) -> CallReader:
        return CallReader(self.format, tools.names)

    def _token(self, text: str) -> int | None:
        """The token that grammars know by its number alone, and not by its text: llguidance takes those in angle
        brackets for special even where the tokenizer does not."""
        bracketed = text.startswith("<") and text.endswith(">")
        return self._tokens.get(text) if bracketed or text in self._special else None

    def _with_ids(self, turns: Sequence[Turn]) -> list[Turn]:
        """With names in the results of tools, and ids as long as the template wants them."""
        names = {call.id: call.name for turn in turns for call in turn.calls}
        fitted = []
        for turn in turns:
            calls = tuple(replace(call, id=self._fitted(call.id)) for call in turn.calls)
            if turn.role == "tool" and turn.call_id is not None:
                name = turn.name or names.get(turn.call_id)
                turn = replace(turn, call_id=self._fitted(turn.call_id), name=name)
            fitted.append(replace(turn, calls=calls))
        return fitted

    def _fitted(self, call_id: str) -> str:
        """The same for the same id."""
        length = self.format.id_length
        if length is None or (len(call_id) == length and call_id.isalnum()):
            return call_id
        letters = string.ascii_letters + string.digits
        return "".join(letters[byte % len(letters)] for byte in hashlib.sha256(call_id.encode()).digest()[:length])


class Dialects:
    """Those of the models of one gateway."""

    def __init__(self) -> None:
        self._known: dict[str, Dialect] = {}

    def of(self, served: Served) -> Dialect:
        if served.base not in self._known:
            self._known[served.base] = Dialect(served.tokenizer)
        return self._known[served.base]


def _shows_tools(tokenizer: Tokenizer) -> bool:
    """Whether the chat template puts tools into a prompt, rather than to mention them."""
    probe = Tool("a_name_that_is_nowhere_else")
    chat = [{"role": "user", "content": "?"}]
    try:
        text: str = tokenizer.apply_chat_template(chat, tools=[_described(probe)], tokenize=False)
    except TemplateError:
        return False
    return probe.name in text


def _template(tokenizer: Tokenizer) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):  # one for tools, and a default
        template = template.get("tool_use") or template.get("default")
    return template or ""


def _described(tool: Tool) -> Mapping[str, Any]:
    """As chat completions, and so the library's templates, have it."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _without_tools(turns: Sequence[Turn]) -> list[Turn]:
    """Calls and results as text, for templates that know neither; what users say then joins the results before it."""
    plain: list[Turn] = []
    for turn in turns:
        if turn.role == "tool":
            turn = Turn("user", f"<tool_response>\n{turn.text}\n</tool_response>")
        text = "\n".join(filter(None, [turn.text, *map(_written, turn.calls)]))
        last = plain[-1] if plain else None
        if last is not None and last.role == turn.role == "user" and last.text.endswith("</tool_response>"):
            plain[-1] = replace(last, text=f"{last.text}\n{text}")
        else:
            plain.append(replace(turn, text=text, calls=(), call_id=None))
    return plain


def _written(call: ToolCall) -> str:
    body = f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}'
    return f"<tool_call>\n{body}\n</tool_call>"
