import io
import json
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

from peers.ready import StandingBy
from peers.views import DashboardView, JsonView, Noted, PlainView, can_draw, choose_view
from swarm.ids import Span
from swarm.record import PeerState
from swarm.running import running
from swarm.terminal import LogFormat, setup_logging
from tests.peers.moments import PEER, a_moment, a_ready


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(Terminal):
    """A terminal whose window is gone."""

    broken = False

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError(5, "Input/output error")
        return super().write(text)


def console_on(file: io.StringIO) -> Console:
    return Console(file=file, width=80, height=30, force_terminal=True, color_system=None, legacy_windows=False)


def screen(written: str) -> list[str]:
    """The lines of a terminal after it got these; knows what rich's Live uses."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[?\d]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r" or part.startswith("\x1b[?"):
            continue
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.endswith("A"):
            row -= int(part[2:-1])
        else:
            assert not part.startswith("\x1b"), part
            lines[row] += part
    return lines


def test_dashboard_is_drawn_over_itself_and_log_lines_stay_above_it() -> None:
    file = Terminal()
    console = console_on(file)
    setup_logging(console=console)
    view = DashboardView(console)
    view.begin(a_ready())
    view.show(a_moment(tokens=1))
    logging.getLogger("swarm").info("somebody came")
    view.show(a_moment(tokens=2))
    view.show(a_moment(tokens=3, state=PeerState.OFFLINE))
    view.end()
    lines = screen(file.getvalue())
    titles = [number for number, line in enumerate(lines) if line.startswith("swarm ·")]
    assert len(titles) == 1
    assert "offline" in lines[titles[0]]
    assert "somebody came" in "".join(lines[: titles[0]])
    assert sum("3 tokens served" in line for line in lines) == 1
    assert sum("tokens served" in line for line in lines) == 1


def test_dashboard_outlives_its_terminal(caplog: pytest.LogCaptureFixture) -> None:
    file = Closed()
    view = DashboardView(console_on(file))
    view.begin(a_ready())
    view.show(a_moment())
    file.broken = True
    caplog.set_level(logging.INFO)
    view.show(a_moment())
    view.show(a_moment())
    view.end()
    assert caplog.text.count("the dashboard ends") == 1


def test_programs_get_stats_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogFormat.JSON)
    view = JsonView(every=30.0)
    view.begin(a_ready())
    for second in range(100):
        view.show(a_moment(uptime=float(second), tokens=second))
    view.end()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["ready"] + 4 * ["stats"]
    assert [event["tokens"] for event in events[1:]] == [30, 60, 90, 99]
    assert (
        events[1]
        | {
            "state": "online",
            "tokens_in_all": 1_234_567,
            "kv_tokens_used": 2048,
            "memory": {"executor": 800_000_000, "network": 200_000_000, "free": 5_000_000_000},
            "temperature": 61.2,
            "device_memory": None,
        }
        == events[1]
    )


def test_elsewhere_one_block_of_text_says_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    view.begin(a_ready())
    view.show(a_moment())
    view.end()
    text = capsys.readouterr().out
    assert text.count(PEER) == 4
    assert "\x1b" not in text


def test_dashboard_is_for_terminals_that_can_draw_it() -> None:
    terminal, file = Terminal(), io.StringIO()
    assert can_draw({"TERM": "xterm"}, terminal, terminal)
    assert not can_draw({"TERM": "dumb"}, terminal, terminal)
    assert not can_draw({"TERM": "xterm"}, terminal, file)
    assert isinstance(
        choose_view(LogFormat.PRETTY, True, console_on(file)), PlainView
    )  # pytest's streams are no terminals
    assert isinstance(choose_view(LogFormat.JSON, True, console_on(file)), JsonView)


def test_who_stands_by_says_so_to_programs_and_to_others_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    standing = StandingBy(
        peer_id=PEER,
        addresses=("/ip4/192.168.1.4/tcp/31330",),
        model="smollm2",
        blocks=Span(0, 15),
        num_blocks=30,
        reason="",
    )
    setup_logging(LogFormat.JSON)
    view = Noted(JsonView(), tmp_path)
    view.begin(a_ready())
    view.stand_by(standing)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in said] == ["ready", "standby"]
    assert said[1]["blocks"] == [0, 15]
    assert [each.blocks for each in running(tmp_path)] == ["0:15 standby"]
    view.end()
    assert running(tmp_path) == ()
