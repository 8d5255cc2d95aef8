"""What a request says of tools is read, or refused by the name of its field."""

from typing import Any

import pytest

from clients.gateway.errors import ApiError
from clients.gateway.fields import Fields
from clients.gateway.tools import read_tools


def function(name: str = "time", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def test_tools_are_offered_unless_none_are_wanted() -> None:
    body = {"tools": [function(description="Now", strict=True), function("b", parameters={"properties": {}})]}
    tools = read_tools(Fields(body))
    assert tools.names == ("time", "b")
    assert (tools.required, tools.parallel, tools.constrained) == (False, True, True)
    assert [dict(tool.parameters) for tool in tools.offered] == [
        {"type": "object"},
        {"type": "object", "properties": {}},
    ]
    assert read_tools(Fields(body | {"tool_choice": "none"})).offered == ()
    assert read_tools(Fields({})).offered == ()


def test_choices_require_and_narrow() -> None:
    body = {"tools": [function("a"), function("b")], "parallel_tool_calls": False}
    assert read_tools(Fields(body | {"tool_choice": "auto"})).required is False
    assert read_tools(Fields(body | {"tool_choice": "required"})).required is True
    named = read_tools(Fields(body | {"tool_choice": {"type": "function", "function": {"name": "b"}}}))
    assert (named.names, named.required, named.parallel) == (("b",), True, False)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("a")]}}
    assert read_tools(Fields(body | {"tool_choice": allowed})).names == ("a",)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [function("with space")]}, "tools[0].function.name"),
        ({"tools": [function(parameters={"type": "array"})]}, "tools[0].function.parameters"),
        ({"tools": [function(parameters=[1])]}, "tools[0].function.parameters"),
        ({"tools": [function(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [function(), function()]}, "tools"),
        ({"tools": [function()] * 200}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [function()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [function()], "tool_choice": 3}, "tool_choice"),
        ({"tools": [function()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [function()], "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice"),
        ({"functions": [{"name": "a"}]}, "functions"),
    ],
)
def test_what_can_not_be_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_tools(Fields(body))
    assert (caught.value.status, caught.value.param) == (400, param)
