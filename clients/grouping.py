"""Commands whose options are fields of dataclasses: what belongs together is declared and checked together."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

__all__ = ["grouped"]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer takes it: in the place of each parameter that is a dataclass stand its fields, which are
    annotated as options are. All of them have names of their own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    flat = list(_flat(signature(command), hints))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in groups.items()
        }
        command(**given, **made)

    del run.__dict__["__wrapped__"]  # or its parameters would count
    run.__annotations__ = {each.name: each.annotation for each in flat}
    run.__dict__["__signature__"] = Signature(flat)
    return run


def _flat(whole: Signature, hints: dict[str, Any]) -> Iterator[Parameter]:
    for name, parameter in whole.parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            yield Parameter(name, Parameter.KEYWORD_ONLY, default=parameter.default, annotation=kind)
            continue
        inner = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            default = Parameter.empty if field.default is MISSING else field.default
            yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=inner[field.name])
