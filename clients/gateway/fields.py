"""Reading the JSON body of a request, field by field: each gives a value of the right type and within bounds, or is
refused in a sentence that names it. Unknown fields are ignored, and null is as good as absent."""

import json
import math
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from clients.gateway.errors import ApiError

__all__ = ["Fields", "read_body", "refusal"]

MOST_TEXT = 8 << 20  # characters of one text
MOST_ENTRIES = 1 << 20  # of one list, such as a prompt of token ids

_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


def refusal(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """The error for a field that is not as it must be; `param` is its path, such as messages[0].content."""
    return ApiError(400, message, type="invalid_request_error", code=code, param=param)


def describe(value: Any) -> str:
    """The JSON type of `value`, in words."""
    return "null" if value is None else _NAMES.get(type(value), "something else")


class Fields:
    """A JSON object. `at` is its own path, empty for the body."""

    def __init__(self, value: Any, at: str = "") -> None:
        if not isinstance(value, dict):
            what = f"'{at}'" if at else "the body"
            raise refusal(f"{what} is an object, not {describe(value)}", at or None, "invalid_type")
        self.values: dict[str, Any] = value
        self.at = at

    def path(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:
        """As it came, unchecked; None where absent."""
        return self.values.get(name)

    def need(self, name: str) -> Any:
        value = self.values.get(name)
        if value is None:
            raise self.refusal(name, f"'{self.path(name)}' is missing", "missing_required_parameter")
        return value

    def refusal(self, name: str, message: str, code: str = "invalid_value") -> ApiError:
        return refusal(message, self.path(name), code)

    def text(self, name: str, default: str | None = None, *, most: int = MOST_TEXT) -> str | None:
        value = self.values.get(name)
        return default if value is None else self._text(name, value, most)

    def need_text(self, name: str, *, most: int = MOST_TEXT) -> str:
        return self._text(name, self.need(name), most)

    def one_of(self, name: str, options: Sequence[str], default: str) -> str:
        value = self.values.get(name)
        if value is None:
            return default
        if value not in options:
            raise self.refusal(name, f"'{self.path(name)}' is one of {', '.join(options)}")
        return str(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong_type(name, "true or false", value)
        return value

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise self._wrong_type(name, "a whole number", value)
        if not low <= value <= high:
            raise self._out_of_range(name, low, high, value)
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_type(name, "a number", value)
        if not low <= value <= high or not math.isfinite(value):
            raise self._out_of_range(name, low, high, value)
        return float(value)

    def entries(self, name: str, *, most: int = MOST_ENTRIES) -> list[Any]:
        """Empty where absent."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong_type(name, "a list", value)
        if len(value) > most:
            raise self.refusal(name, f"'{self.path(name)}' has at most {most} entries, not {len(value)}")
        return value

    def nested(self, name: str) -> "Fields | None":
        value = self.values.get(name)
        return None if value is None else Fields(value, self.path(name))

    def objects(self, name: str, *, most: int = MOST_ENTRIES) -> list["Fields"]:
        """A list of objects."""
        return [Fields(value, f"{self.path(name)}[{at}]") for at, value in enumerate(self.entries(name, most=most))]

    def _text(self, name: str, value: Any, most: int) -> str:
        if not isinstance(value, str):
            raise self._wrong_type(name, "a string", value)
        if len(value) > most:
            raise self.refusal(name, f"'{self.path(name)}' has at most {most} characters, not {len(value)}")
        return value

    def _wrong_type(self, name: str, wanted: str, value: Any) -> ApiError:
        return self.refusal(name, f"'{self.path(name)}' is {wanted}, not {describe(value)}", "invalid_type")

    def _out_of_range(self, name: str, low: float, high: float, value: float) -> ApiError:
        shown = str(value)[:40]
        return self.refusal(name, f"'{self.path(name)}' is between {low} and {high}, not {shown}")


async def read_body(request: Request) -> Fields:
    """The JSON object that `request` carries, in a body that `answering` has bounded. ApiError 400 for others."""
    body = await request.body()
    try:
        value = json.loads(body, parse_constant=_no_constant)
        if b"\\ud" in body or b"\\uD" in body:  # halves of characters can't be encoded again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise refusal(f"the body is no JSON: {error}", None, "invalid_json") from error
    return Fields(value)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
