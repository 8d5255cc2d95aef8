import io
import shlex

import pytest
from rich.console import Console

from peers.dashboard import Dashboard
from peers.moment import Moment
from peers.stats import DeviceUse, EngineStats
from peers.vitals import Vitals
from swarm.record import PeerState
from tests.peers.moments import PEER, a_moment, a_ready

EXPECTED = f"""\
swarm · garage · online · 2 h 3 min ────────────────────────────────────────────
 peer       {PEER}
 blocks     0:15 (15 of 30) of smollm2
            blocks 0:15 had no peer
 compute    int4 on 2 cores
            the quickest here
 reached at /ip4/192.168.1.4/tcp/31330

 speed      41.2 tokens/s  ▁▄▅█
 sessions   3 now of 5 rows, 12 in this run
 batches    of 2.7 rows, computing 64% of the time
 KV cache   █████░░░░░░░░░░░░░░░ 25%, 128 of 512 pages
 memory     1 GB used, 5 GB free, 61 °C
 thanks     1 234 tokens served in this run, 1 234 567 in all since 2026-11-01

Join with another machine:
swarm-serve smollm2 --initial-peers \\
/ip4/192.168.1.4/tcp/31330/p2p/{PEER[:48]}\\
{PEER[48:]}
"""


def drawn(moment: Moment, width: int = 80, height: int = 40, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    console = Console(file=file, width=width, height=height, force_terminal=False, legacy_windows=False)
    console.print(Dashboard(moment))
    file.flush()
    buffer = file.buffer
    assert isinstance(buffer, io.BytesIO)
    text = buffer.getvalue().decode(encoding)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_whole_dashboard_on_an_ordinary_terminal() -> None:
    assert drawn(a_moment()) == EXPECTED


@pytest.mark.parametrize("width", [1, 9, 20, 40, 49, 50, 79, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_and_no_drawing_higher_than_the_terminal(width: int, encoding: str) -> None:
    for height in (1, 2, 5, 12, 24):
        lines = drawn(a_moment(), width, height, encoding).splitlines()
        assert 1 <= len(lines) <= max(1, height - 1)
        assert max(map(len, lines)) <= width


def test_low_terminal_keeps_what_matters_most() -> None:
    text = drawn(a_moment(), height=4)
    assert [line.split()[0] for line in text.splitlines()] == ["swarm", "speed", "thanks"]


def test_line_to_join_pastes_as_one_command_at_any_width() -> None:
    ready = a_ready(model="my model's name")
    for width in (60, 80, 130, 200):
        lines = drawn(a_moment(ready=ready), width).partition("machine:\n")[2]
        assert shlex.split(lines.replace("\\\n", "")) == shlex.split(ready.join)


def test_terminal_without_unicode_gets_plain_signs() -> None:
    text = drawn(a_moment(vitals=Vitals(own=1, free=1)), encoding="ascii")
    assert text.isascii()
    assert "#####..............." in text


def test_name_from_the_command_line_cannot_move_the_cursor() -> None:
    assert "\x1b" not in drawn(a_moment(ready=a_ready(name="\x1b[2Jgarage")))


def test_executor_that_has_just_started_is_no_division_by_zero() -> None:
    text = drawn(a_moment(state=PeerState.JOINING, engine=EngineStats(), batch=None))
    assert "joining" in text
    assert "not heard of yet" in text
    assert "nothing to compute" in text


@pytest.mark.parametrize("state", list(PeerState))
def test_every_state_is_shown(state: PeerState) -> None:
    assert f" {state.value} " in drawn(a_moment(state=state))


def test_many_addresses_are_counted() -> None:
    addresses = tuple(f"/ip4/192.168.1.{n}/tcp/31330/p2p/{PEER}" for n in range(8))
    text = drawn(a_moment(addresses=addresses))
    assert "192.168.1.2/tcp/31330 and 5 more" in text
    assert "192.168.1.3" not in text


def test_fine_tuning_is_told_apart() -> None:
    engine = EngineStats(sessions=1, rows=1, training_sessions=2, kv_tokens=16)
    assert "1 now, 2 fine-tuning, 12 in this run" in drawn(a_moment(engine=engine))


def test_device_shows_its_own_memory_and_heat() -> None:
    text = drawn(a_moment(device=DeviceUse(free=10_000_000_000, total=16_000_000_000, temperature=70.0)))
    assert "GPU 10 GB of 16 GB free, 70 °C" in text
