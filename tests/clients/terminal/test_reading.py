import io
import sys

import pytest

from clients.terminal.reading import Lines


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one \\\ntwo\\\nthree\nfour", ["one \ntwo\nthree", "four"]),
        ('"""\none\n\n two\n"""\nthree', ["one\n\n two", "three"]),
        ('"""one\ntwo"""', ["one\ntwo"]),
        ('"""one"""\ntwo', ["one", "two"]),
        ('"""never\nended', ["never\nended"]),
        ("goes on \\", ["goes on"]),
        ("\n", [""]),
        ("", []),
    ],
)
def test_lines_become_messages(typed: str, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert list(iter(Lines(prompts=False).next, None)) == messages
