"""Frames: what goes in comes out; anything else is a WireError before memory is spent on it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import WireError
from swarm.wire import MAX_FRAME, MAX_HEADER, PREFIX, TOTAL, checked_total, decode, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
HEADERS = st.dictionaries(st.text(), VALUES, max_size=6)


@given(HEADERS, st.lists(st.binary(), max_size=3))
def test_frame_survives_the_way(header: dict[str, Any], body: list[bytes]) -> None:
    frame = decode(encode(header, *body))
    assert frame.header == header
    assert bytes(frame.body) == b"".join(body)


def test_body_is_a_view_of_the_frame() -> None:
    data = bytearray(encode({}, b"abc"))
    frame = decode(data)
    data[-1] = ord("z")
    assert bytes(frame.body) == b"abz"


@given(st.binary(max_size=64))
def test_random_bytes_are_a_frame_or_a_wire_error(data: bytes) -> None:
    try:
        decode(data)
    except WireError:
        return


@given(st.binary(max_size=200), st.integers(0, 300))
def test_well_framed_random_header_is_a_map_or_a_wire_error(packed: bytes, length: int) -> None:
    try:
        frame = decode(PREFIX.pack(4 + len(packed), length) + packed)
    except WireError:
        return
    assert isinstance(frame.header, dict)


@given(HEADERS, st.binary(max_size=50), st.data())
def test_damaged_frame_is_a_frame_or_a_wire_error(header: dict[str, Any], body: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode(header, body))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    for damaged in (frame, frame[:cut]):
        try:
            decode(damaged)
        except WireError:
            continue


@pytest.mark.parametrize(
    "packed", [b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x81\x90\x01", b"\x81\xc1\x01"]
)
def test_hostile_header_is_a_wire_error(packed: bytes) -> None:
    with pytest.raises(WireError):
        decode(PREFIX.pack(4 + len(packed), len(packed)) + packed)


@pytest.mark.parametrize("total", [0, 3, MAX_FRAME - 3, 2**32 - 1])
def test_length_beyond_the_limits_is_refused_before_anything_is_allocated(total: int) -> None:
    with pytest.raises(WireError):
        checked_total(TOTAL.pack(total))


@pytest.mark.parametrize("total", [4, MAX_FRAME - 4])
def test_length_at_the_limits_is_good(total: int) -> None:
    assert checked_total(TOTAL.pack(total)) == total


def test_largest_frame_can_be_written_and_read() -> None:
    room = MAX_FRAME - PREFIX.size - 1  # an empty map takes one byte
    frame = encode({}, bytes(room))
    assert checked_total(frame) == len(frame) - TOTAL.size
    assert decode(frame).body.nbytes == room
    with pytest.raises(WireError):
        encode({}, bytes(room + 1))


def test_header_over_its_limit_is_not_written() -> None:
    with pytest.raises(WireError):
        encode({"text": "x" * MAX_HEADER})
