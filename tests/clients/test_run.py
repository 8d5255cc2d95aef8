import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from clients.run import read_prompt
from swarm.cli import run
from swarm.errors import UsageError
from tests.clients.terminal.scripted import refusal, scripted, whole


@pytest.fixture
def pipe() -> Iterator[TextIO]:
    """The end that a command reads from; "two\n" was written to the other."""
    end, other = os.pipe()
    os.write(other, b"two\n")
    os.close(other)
    with os.fdopen(end) as stdin:
        yield stdin


def test_prompt_may_come_from_a_pipe_or_before_it(pipe: TextIO) -> None:
    assert read_prompt("one:", pipe) == "one:\n\ntwo"


def test_prompt_may_be_what_is_piped(pipe: TextIO) -> None:
    assert read_prompt("-", pipe) == "two"


def test_nobody_reads_from_what_is_neither_pipe_nor_file(tmp_path: Path) -> None:
    with open(os.devnull) as nothing:
        assert read_prompt("one", nothing) == "one"
    (tmp_path / "file").write_text("two")
    with (tmp_path / "file").open() as file:
        assert read_prompt("one", file) == "one\n\ntwo"
    assert read_prompt("one", io.StringIO("no file at all")) == "one"


def test_too_much_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 16 MiB"):
        read_prompt("-", io.TextIOWrapper(io.BytesIO(b"x" * (17 << 20))))


def test_gateway_answers_as_text_or_as_an_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, pipe: TextIO
) -> None:
    monkeypatch.setattr(sys, "stdin", pipe)
    with scripted(whole("Hel", "lo")) as server:
        monkeypatch.setenv("SWARM_URL", server.url)
        assert run(["run", "tiny", "One:", "--system", "Be brief."]) == 0
        assert capsys.readouterr().out == "Hello\n"
        assert [message["content"] for message in server.asked[0]["messages"]] == ["Be brief.", "One:\n\ntwo"]
        assert run(["run", "tiny", "One", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["finish_reason"], found["new_tokens"]) == ("Hello", "stop", 2)


@pytest.mark.parametrize(("status", "code"), [(404, 2), (429, 1), (500, 1)])
def test_refusal_of_a_gateway_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], status: int, code: int
) -> None:
    with scripted(refusal(status, "no")) as server:
        assert run(["run", "tiny", "Hi", "--url", server.url, "--patience", "0"]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_swarm_and_gateway_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    address = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWAqFUaDYFnqfKAmeN9TXLNdLq6xAWj1h63mwA4c79VYFS"
    both = ["--url", "http://127.0.0.1:1/v1", "--initial-peers", address]
    assert run(["run", "tiny", "Hi", *both]) == 2
    assert "give only one of them" in capsys.readouterr().err
    assert run(["run", "tiny", "Hi", "--url", "http://127.0.0.1:1/v1", "--draft", "ngram"]) == 2
    assert "not for --url" in capsys.readouterr().err
    assert run(["chat", "--initial-peers", address]) == 2
    assert "which model?" in capsys.readouterr().err
