"""Whatever bytes a stranger sends: a fixed count of tries, some led by what they reach, and what once did harm."""

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import WireError
from swarm.unpacking import MAX_LIST, MAX_MAP
from swarm.wire import MAX_HEADER, decode
from tests.fuzz.seeds import MESSAGES, seeds
from tests.fuzz.targets import TARGETS, as_frame

FOUND = Path(__file__).parent / "found"
COUNT = 6_000
LONG = 1_000_000
LIMITS = ("-timeout=5", "-rss_limit_mb=512", "-seed=1")  # seconds for one input, memory for all
ROOT = Path(__file__).parents[2]

with_atheris = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this Python or system")


def fuzz(target: str, folder: Path, count: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", target, str(folder), f"-runs={count}", *LIMITS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert f"Done {count} runs" in run.stderr


@with_atheris
def test_guided_by_what_it_reaches_a_fuzzer_finds_nothing(tmp_path: Path) -> None:
    fuzz("all", tmp_path, COUNT)


@with_atheris
@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_a_fuzzer_that_is_given_time_finds_nothing(target: str, tmp_path: Path) -> None:
    fuzz(target, tmp_path, LONG)


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_begins_with_is_good(target: str) -> None:
    for seed in seeds(target):
        TARGETS[target](seed)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*-*")), ids=lambda path: path.name)
def test_what_once_did_harm_does_none(path: Path) -> None:
    TARGETS[path.name.partition("-")[0]](path.read_bytes())


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a header, however deep."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(copy[at[0]], at[1:], new)
    return copy


ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        1 << 63,
        (1 << 64) - 1,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x" * 5000,
        "\0\x1b[2J",
        b"",
        [],
        {},
    ]
)
ANYTHING = ODD | st.lists(ODD, max_size=3) | st.dictionaries(st.text(max_size=3), ODD, max_size=3)
HEADERS: list[Mapping[str, Any]] = [dict(decode(message.pack()).header) for message in MESSAGES]


@given(st.sampled_from(HEADERS), ANYTHING, st.data())
def test_anything_anywhere_in_a_message_is_a_message_or_refused(
    header: Mapping[str, Any], odd: Any, data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from(list(places(header))))
    TARGETS["message"](as_frame(msgpack.packb(changed(header, place, odd))))


@given(st.sampled_from(sorted({*TARGETS} - {"record", "presence"})), st.binary(max_size=300))
def test_any_bytes_do_nothing_that_their_reader_is_not_told_of(target: str, data: bytes) -> None:
    TARGETS[target](data)


ANNOUNCED = [  # what has 4 GB, says its header, or more
    pytest.param(b"\xc6\xff\xff\xff\xff", id="bytes"),
    pytest.param(b"\xdb\xff\xff\xff\xff", id="text"),
    pytest.param(b"\xdd\xff\xff\xff\xff", id="list"),
    pytest.param(b"\xdf\xff\xff\xff\xff", id="map"),
    pytest.param(b"\xc9\xff\xff\xff\xff\x05", id="extension"),
    pytest.param(b"\xdd\x00\x03\xff\xff" * 4000, id="lists of lists"),
    pytest.param(b"\x91" * (MAX_HEADER - 1), id="depth"),
    pytest.param(b"\xd4\x01\x00", id="an extension"),
    pytest.param(b"\xdd" + (MAX_LIST + 1).to_bytes(4) + bytes(MAX_LIST + 1), id="a list that is too long"),
    pytest.param(b"\xdf" + (MAX_MAP + 1).to_bytes(4) + b"\0" * 2 * (MAX_MAP + 1), id="a map that is too long"),
]


@pytest.mark.parametrize("packed", ANNOUNCED)
def test_what_announces_gigabytes_is_refused_before_they_are_there(packed: bytes) -> None:
    with pytest.raises(WireError):
        decode(as_frame(b"\x81\xa1x" + packed))


def test_lists_in_lists_make_no_room_for_what_does_not_come() -> None:
    """Each of 500 lists announces no more than the header's bytes could bring; together it would be 1 GB."""
    announced = b"\xdd" + (MAX_HEADER - 5000).to_bytes(4)
    tracemalloc.start()
    with pytest.raises(WireError, match="max_array_len"):
        decode(as_frame(b"\x81\xa1x" + announced * 500 + bytes(MAX_HEADER - 2510)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
