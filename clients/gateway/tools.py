"""The tools of a request: functions that its model may call."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clients.gateway.fields import Fields, describe

__all__ = ["NO_TOOLS", "Choice", "Tool", "Tools", "choose", "new_call_id", "read_function", "read_tools"]

MOST_TOOLS = 128
MOST_DESCRIPTION = 1 << 15  # characters
_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tool:
    """One function. `parameters` is the JSON schema of its arguments, an object; `param` the field it came in. If
    `strict`, a call always keeps to it."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False
    param: str = "tools"


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called. `required`: the answer is a call; `parallel`: or several."""

    offered: tuple[Tool, ...] = ()
    required: bool = False
    parallel: bool = True
    param: str = "tools"  # the field they came in

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.offered)

    @property
    def constrained(self) -> bool:
        """Whether sampling must see to it that calls are as they should be."""
        return bool(self.offered) and (self.required or not self.parallel or any(tool.strict for tool in self.offered))


NO_TOOLS = Tools()


@dataclass(frozen=True, slots=True)
class Choice:
    """What a request says of calls: `mode` is auto, none or required; `names` are the tools it means, None for all."""

    mode: str = "auto"
    names: tuple[str, ...] | None = None


def choose(tools: Sequence[Tool], choice: Choice, body: Fields, *, parallel: bool) -> Tools:
    """`body` has the fields `tools` and `tool_choice`. Raises ApiError 400 for a choice of what is not there."""
    known = {tool.name for tool in tools}
    if len(known) < len(tools):
        raise body.refusal("tools", "two of the tools have the same name")
    missing = next((name for name in choice.names or () if name not in known), None)
    if missing is not None:
        raise body.refusal("tool_choice", f"'tool_choice' names '{missing[:80]}', which is not among 'tools'")
    if choice.mode == "required" and not tools:
        raise body.refusal("tool_choice", "'tool_choice' asks for a call, but there are no 'tools'")
    if choice.mode == "none":
        return NO_TOOLS
    offered = tuple(tool for tool in tools if choice.names is None or tool.name in choice.names)
    return Tools(offered, choice.mode == "required", parallel)


def read_function(fields: Fields, *, schema: str = "parameters", strict: bool = False) -> Tool:
    """`schema` is what the API calls the schema of the arguments, `strict` what it takes when nothing is said."""
    name = fields.need_text("name")
    if not _NAME.fullmatch(name):
        raise fields.refusal("name", f"'{fields.path('name')}' has letters, digits, '_', '.' and '-', 128 at most")
    parameters = Fields(fields.get(schema) or {}, fields.path(schema)).values
    if parameters.get("type", "object") != "object":
        raise fields.refusal(schema, f"'{fields.path(schema)}' must be the schema of an object")
    return Tool(
        name,
        fields.text("description", "", most=MOST_DESCRIPTION) or "",
        {"type": "object", **parameters},
        fields.flag("strict", strict),
        fields.path(schema),
    )


def read_tools(body: Fields) -> Tools:
    """Those of a chat completion: `tools`, `tool_choice`, `parallel_tool_calls`."""
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if body.has(old):
            raise body.refusal(old, f"'{old}' is not supported any more; use '{new}'", "unsupported_parameter")
    tools = [_function(entry) for entry in body.objects("tools", most=MOST_TOOLS)]
    return choose(tools, _choice(body), body, parallel=body.flag("parallel_tool_calls", True))


def _function(entry: Fields) -> Tool:
    if (kind := entry.need_text("type")) != "function":
        message = f"'{entry.path('type')}' is '{kind[:40]}', but only functions can be called here"
        raise entry.refusal("type", message, "unsupported_value")
    return read_function(Fields(entry.need("function"), entry.path("function")))


def _choice(body: Fields) -> Choice:
    value = body.get("tool_choice")
    if value is None:
        return Choice()
    if isinstance(value, str):
        return Choice(body.one_of("tool_choice", ("auto", "none", "required"), "auto"))
    if not isinstance(value, dict):
        message = f"'tool_choice' is auto, none, required or an object, not {describe(value)}"
        raise body.refusal("tool_choice", message, "invalid_type")
    asked = Fields(value, "tool_choice")
    if asked.one_of("type", ("function", "allowed_tools"), "function") == "function":
        return Choice("required", (Fields(asked.need("function"), asked.path("function")).need_text("name"),))
    allowed = Fields(asked.need("allowed_tools"), asked.path("allowed_tools"))
    entries = allowed.objects("tools", most=MOST_TOOLS)
    names = tuple(Fields(entry.need("function"), entry.path("function")).need_text("name") for entry in entries)
    return Choice(allowed.one_of("mode", ("auto", "required"), "auto"), names)


def new_call_id(prefix: str = "call_") -> str:
    return prefix + secrets.token_hex(12)
