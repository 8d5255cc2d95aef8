"""Measured figures: repeated, summed up as a median and its spread, and printed as tables and one line of JSON."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from swarm.errors import UsageError
from swarm.version import __version__

__all__ = ["Spread", "new_table", "publish", "whole_numbers"]


FILE_WIDTH = 120  # characters, where the output is no terminal


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the same figure measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


def new_table(title: str, *columns: str) -> Table:
    """The first column is of names, the others of figures."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def publish(regime: str, tables: Sequence[Table], values: Mapping[str, Any], *, alone: bool = False) -> None:
    """Print the tables, and as the last line of standard output one JSON object: `values`, and on what they were
    measured. `alone`: that line and no tables."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH, quiet=alone)
    for table in tables:
        console.print(table)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "version": __version__}
    sys.stdout.write(json.dumps({"bench": regime, **machine, **values}) + "\n")
    sys.stdout.flush()


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,4,16` from an option. Raises UsageError."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} takes whole numbers above zero, parted by commas, as in 1,4,16; not '{text}'")
    return tuple(dict.fromkeys(map(int, parts)))


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
