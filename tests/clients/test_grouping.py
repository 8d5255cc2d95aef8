"""Options that are fields of dataclasses."""

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.exceptions import TyperException

from clients.grouping import grouped


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    thing: Annotated[str, typer.Argument()]
    wide: Annotated[int, typer.Option(min=1)]
    high: Annotated[int, typer.Option("--height")] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    colours: Annotated[list[str] | None, typer.Option("--colour")] = None


def called(*words: str) -> list[Any]:
    """What the command is given for these words."""
    given: list[Any] = []
    app = typer.Typer()

    def paint(size: Size, look: Look, loud: bool = False) -> None:
        given.extend((size, look, loud))

    app.command()(grouped(paint))
    app(list(words), standalone_mode=False)
    return given


def test_fields_are_options_and_come_back_as_what_they_belong_to() -> None:
    words = ("box", "--wide", "3", "--colour", "red", "--colour", "blue", "--loud")
    assert called(*words) == [Size(thing="box", wide=3), Look(colours=["red", "blue"]), True]


def test_names_that_are_given_and_defaults_count() -> None:
    assert called("box", "--wide=3", "--height=4") == [Size(thing="box", wide=3, high=4), Look(), False]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("box",), "Missing parameter: wide"),
        (("--wide=3",), "Missing parameter: thing"),
        (("box", "--wide=0"), "greater than or equal to 1"),
        (("box", "--wide=3", "--high=4"), "No such option: --high"),
    ],
)
def test_what_is_missing_or_wrong_is_refused(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(TyperException, match=sentence):
        called(*words)
