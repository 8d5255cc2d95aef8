import json
import logging
import re
import subprocess
import sys
import warnings

import pytest

from swarm.terminal import LogFormat, emit, plain, quiet_libraries, setup_logging


def test_json_is_one_object_a_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogFormat.JSON)
    emit("ready", peer_id="12D3", blocks=[0, 15], level="mine")
    logging.getLogger("swarm.x").warning("two\nlines of %s", "text")
    captured = capsys.readouterr()
    ready, warning = map(json.loads, captured.out.splitlines())
    assert {key: ready[key] for key in ("event", "peer_id", "blocks", "level", "logger")} == {
        "event": "ready",
        "peer_id": "12D3",
        "blocks": [0, 15],
        "level": "info",
        "logger": "swarm",
    }
    assert (warning["message"], warning["level"], warning["logger"]) == ("two\nlines of text", "warning", "swarm.x")
    assert captured.err == ""


def test_json_carries_tracebacks_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogFormat.JSON)
    try:
        raise ValueError("of this")
    except ValueError:
        logging.getLogger("swarm").exception("failed")
    assert "ValueError: of this" in json.loads(capsys.readouterr().out)["traceback"]


def test_pretty_is_for_people_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogFormat.PRETTY)
    emit("ready", blocks=[0, 15], reason="needed most")
    logging.getLogger("swarm").info("a stranger called [bold]x[/bold]\x1b[2J\n\u202ehidden")
    captured = capsys.readouterr()
    assert captured.out == ""
    words = " ".join(captured.err.split())
    assert 'ready blocks=[0, 15] reason="needed most"' in words
    assert "[bold]x[/bold]\ufffd[2J \ufffdhidden" in words


def test_pretty_lines_are_whole_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogFormat.PRETTY)
    logging.getLogger("swarm").warning("word " * 100)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING  (word ?){100}", line)


def test_second_set_up_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogFormat.PRETTY)
    setup_logging(LogFormat.JSON)
    emit("once")
    captured = capsys.readouterr()
    assert (len(captured.out.splitlines()), captured.err) == (1, "")


def test_warnings_of_libraries_go_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogFormat.JSON)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("of a library", UserWarning, stacklevel=1)
    logging.captureWarnings(False)
    assert "of a library" in json.loads(capsys.readouterr().out)["message"]


def test_reader_that_goes_away_is_not_an_error() -> None:
    code = (
        "from swarm.terminal import *; import os, sys; setup_logging(LogFormat.JSON)\n"
        "for _ in range(3): emit('x')\n"
        "sys.stdin.read()\n"
        "for _ in range(3): emit('y')\n"
        "os._exit(0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        child.stdin.close()
        assert child.stderr.read() == b""
        assert child.wait(30) == 0


def test_libraries_are_quiet_unless_asked() -> None:
    environ = {"HIVEMIND_LOGLEVEL": "DEBUG"}
    quiet_libraries(environ)
    assert environ["HIVEMIND_LOGLEVEL"] == "DEBUG"
    assert environ["TRANSFORMERS_VERBOSITY"] == "error"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ada's peer", "Ada's peer"),
        ("two\nlines\tand  space ", "two lines and space"),
        ("\x1b]0;title\x07", "\ufffd]0;title\ufffd"),
        ("a\u202eb\u200bc", "a\ufffdb\ufffdc"),
        ("näme 名 🙂", "näme 名 🙂"),
    ],
)
def test_text_of_a_stranger_is_made_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_long_text_of_a_stranger_is_cut() -> None:
    assert plain("x" * 100, limit=10) == "x" * 10 + "…"
