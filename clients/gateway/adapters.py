"""Which adapters a gateway serves beside its models: what `--adapter` says, one at a time."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from swarm.errors import UsageError

__all__ = ["AdapterOption", "of_models"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FORM = "give --adapter NAME=FOLDER, or MODEL:NAME=FOLDER where several models are served"


@dataclass(frozen=True, slots=True)
class AdapterOption:
    """`source`: a folder or a hub id. `model`: as the command line names it; None where there is but one."""

    name: str
    source: str
    model: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises UsageError."""
        left, equals, source = text.partition("=")
        model, _, name = left.rpartition(":")
        if not equals or not source.strip():
            raise UsageError(f"--adapter '{text}' names no folder: {FORM}")
        if NAME.fullmatch(name) is None:
            raise UsageError(f"'{name}' is no name for an adapter: up to 64 letters, digits, dots, dashes, underlines")
        return cls(name, source.strip(), model or None)


def of_models(options: Iterable[AdapterOption], models: Sequence[str]) -> dict[str, list[AdapterOption]]:
    """Whose they are, for each of `models`. Raises UsageError where that can't be told, or two have one name."""
    found: dict[str, list[AdapterOption]] = {model: [] for model in models}
    for option in options:
        model = option.model if option.model is not None or len(models) > 1 else models[0]
        if model is None:
            raise UsageError(f"whose is the adapter {option.name}, of {', '.join(models)}? {FORM}")
        if model not in found:
            raise UsageError(f"the adapter {option.name} is for {model}, which is not served here: {', '.join(models)}")
        if any(other.name == option.name for other in found[model]):
            raise UsageError(f"two adapters of {model} go by the name {option.name}: give one of them another")
        found[model].append(option)
    return found
