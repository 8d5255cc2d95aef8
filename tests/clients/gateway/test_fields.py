"""Fields of a request: what is taken, and how what is not is refused."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clients.gateway.errors import ApiError
from clients.gateway.fields import Fields, read_body
from tests.clients.gateway.live import LiveGateway

GIVEN = Fields({"t": "a", "w": 3, "f": 3.0, "x": 0.5, "b": True, "l": [1], "o": {"in": "ner"}, "null": None})


def test_what_is_as_it_must_be_is_given() -> None:
    assert GIVEN.need_text("t") == "a"
    assert GIVEN.whole("w", 0, 5) == GIVEN.whole("f", 0, 5) == 3
    assert GIVEN.number("x", 0, 1, 0.0) == 0.5
    assert GIVEN.flag("b") is True
    assert GIVEN.entries("l") == [1]


def test_null_is_as_good_as_absent() -> None:
    for name in ("null", "absent"):
        assert GIVEN.text(name) is None
        assert GIVEN.whole(name, 0, 5, 4) == 4
        assert GIVEN.number(name, 0, 1, 0.25) == 0.25
        assert GIVEN.flag(name, default=True) is True
        assert GIVEN.entries(name) == []
        assert GIVEN.nested(name) is None


@pytest.mark.parametrize(
    ("read", "param", "code"),
    [
        (lambda: GIVEN.need("absent"), "absent", "missing_required_parameter"),
        (lambda: GIVEN.text("w"), "w", "invalid_type"),
        (lambda: GIVEN.text("t", most=0), "t", "invalid_value"),
        (lambda: GIVEN.whole("x", 0, 5), "x", "invalid_type"),
        (lambda: GIVEN.whole("b", 0, 5), "b", "invalid_type"),
        (lambda: GIVEN.whole("w", 0, 2), "w", "invalid_value"),
        (lambda: GIVEN.number("t", 0, 1, 0), "t", "invalid_type"),
        (lambda: GIVEN.number("w", 0, 1, 0), "w", "invalid_value"),
        (lambda: GIVEN.flag("w"), "w", "invalid_type"),
        (lambda: GIVEN.one_of("t", ("b", "c"), "b"), "t", "invalid_value"),
        (lambda: GIVEN.entries("t"), "t", "invalid_type"),
        (lambda: GIVEN.entries("l", most=0), "l", "invalid_value"),
        (lambda: GIVEN.objects("l"), "l[0]", "invalid_type"),
        (lambda: Fields(GIVEN.get("o"), "o").whole("in", 0, 1), "o.in", "invalid_type"),
    ],
)
def test_what_is_not_is_refused_by_name(read: Callable[[], Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        read()
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)
    assert f"'{param}'" in refused.value.message


async def echo(request: Request) -> Response:
    return JSONResponse((await read_body(request)).values)


@pytest.fixture(scope="module")
def echoing(standing: LiveGateway) -> str:
    """Where bodies are read and sent back."""
    standing.add(Route("/v1/test_fields", echo, methods=["POST"]))
    return f"{standing.base_url}/test_fields"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"a": 1, "b": "\\ud83d\\ude00"}', 200, None),
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"\xff", 400, "invalid_json"),
        (b'{"a": NaN}', 400, "invalid_json"),
        (b'{"a": "\\ud83d"}', 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b"[]", 400, "invalid_type"),
    ],
)
def test_a_body_that_is_no_object_is_refused(echoing: str, body: bytes, status: int, code: str | None) -> None:
    with httpx2.Client() as client:
        response = client.post(echoing, content=body)
    assert response.status_code == status
    if code is not None:
        assert response.json()["error"]["code"] == code
