"""Messages: each survives its way as a frame; whatever else a stranger sends is a WireError and nothing worse."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import WireError
from swarm.ids import Digest, PeerId, RowId, SessionId, Span
from swarm.messages import (
    CODECS,
    MAX_POSITION,
    MAX_ROWS,
    Busy,
    Close,
    Contact,
    Fault,
    FaultCode,
    Fork,
    ForkEntry,
    Message,
    Open,
    Out,
    PageKeys,
    Ping,
    Pong,
    Ready,
    Relink,
    Resend,
    Step,
    StepRow,
    parse,
)
from swarm.wire import decode, encode

SESSIONS = st.binary(min_size=16, max_size=16).map(SessionId)
POSITIONS = st.integers(0, MAX_POSITION)
ROWS = st.integers(0, 2 * MAX_POSITION).map(RowId)
PEERS = st.text(min_size=1, max_size=60).map(PeerId)
CONTACTS = st.builds(Contact, PEERS, st.lists(st.text(max_size=80), max_size=4).map(tuple))
SPANS = st.tuples(st.integers(0, 100), st.integers(1, 100)).map(lambda pair: Span(pair[0], pair[0] + pair[1]))
STEP_ROWS = st.builds(StepRow, ROWS, st.integers(0, MAX_POSITION - 64), st.integers(1, 64), POSITIONS)
STEPS: dict[str, Any] = {
    "session": SESSIONS,
    "rows": st.lists(STEP_ROWS, min_size=1, max_size=5, unique_by=lambda row: row.row).map(tuple),
    "codec": st.sampled_from(CODECS),
    "body": st.binary(max_size=64),
    "trace": st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=4).map(tuple),
}
PAGES = st.lists(
    st.builds(PageKeys, ROWS, POSITIONS, st.lists(st.binary(min_size=32, max_size=32), max_size=3).map(tuple)),
    max_size=3,
).map(tuple)
ADAPTERS = st.dictionaries(st.integers(0, 99), st.binary(min_size=32, max_size=32), max_size=3)
WITH_ADAPTERS = st.one_of(  # a session has some of its client's, or one of its peers'
    st.fixed_dictionaries({"adapters": ADAPTERS.map(lambda keys: tuple(keys.items()))}),
    st.fixed_dictionaries({"hosted": st.text(max_size=64)}),
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        lambda kinds, **others: Open(**kinds, **others),
        WITH_ADAPTERS,
        session=SESSIONS,
        model=st.just(Digest("ab" * 32)),
        hop=SPANS,
        codec=st.sampled_from(CODECS),
        prev=PEERS,
        next=st.none() | CONTACTS,
        lease=st.integers(0, MAX_ROWS * MAX_POSITION),
        sent=st.dictionaries(ROWS, POSITIONS, max_size=4),
        share=st.booleans(),
    ),
    st.builds(Ready, SESSIONS),
    st.builds(Step, page_size=POSITIONS, pages=PAGES, **STEPS),
    st.builds(Out, **STEPS),
    st.builds(
        Relink,
        session=SESSIONS,
        prev=st.none() | PEERS,
        to_next=st.booleans(),
        next=st.none() | CONTACTS,
        resend=st.lists(st.builds(Resend, ROWS, POSITIONS, POSITIONS), max_size=4).map(tuple),
    ),
    st.builds(
        Fork,
        session=SESSIONS,
        forks=st.lists(st.builds(ForkEntry, ROWS, POSITIONS, ROWS), max_size=4).map(tuple),
        drop=st.lists(ROWS, max_size=4).map(tuple),
        onward=st.booleans(),
    ),
    st.builds(Ping, SESSIONS, st.integers(0, 1 << 62)),
    st.builds(Pong, SESSIONS, st.integers(0, 1 << 62), st.dictionaries(ROWS, POSITIONS, max_size=4), st.integers(0, 9)),
    st.builds(Fault, SESSIONS, st.sampled_from(FaultCode), st.text(max_size=80), st.none() | PEERS),
    st.builds(Busy, SESSIONS, st.floats(0, 3600), st.text(max_size=80)),
    st.builds(Close, SESSIONS),
)
EXAMPLE: dict[str, Any] = {"kind": "step", "session": bytes(16), "rows": [[1, 0, 2, 0]], "codec": "fp32", "trace": []}


@given(MESSAGES)
def test_message_survives_the_way(message: Message) -> None:
    assert parse(message.pack()) == message


@given(MESSAGES)
def test_fields_of_a_later_version_are_ignored(message: Message) -> None:
    frame = decode(message.pack())
    assert parse(encode({**frame.header, "later": [1, 2]}, frame.body)) == message


@given(MESSAGES, st.data())
def test_damaged_message_is_a_message_or_a_wire_error(message: Message, data: st.DataObject) -> None:
    frame = bytearray(message.pack())
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(8, len(frame) - 1))] = data.draw(st.integers(0, 255))
    _parsed_or_refused(bytes(frame))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=17),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(MESSAGES, st.data())
def test_field_of_any_other_type_is_a_message_or_a_wire_error(message: Message, data: st.DataObject) -> None:
    header = dict(decode(message.pack()).header)
    name = data.draw(st.sampled_from(sorted(header)))
    if data.draw(st.booleans()):
        header[name] = data.draw(ANYTHING)
    else:
        del header[name]
    _parsed_or_refused(encode(header))


@given(ANYTHING)
def test_header_of_any_shape_is_a_wire_error(header: Any) -> None:
    packed = msgpack.packb(header)
    with pytest.raises(WireError):
        parse((4 + len(packed)).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "nonsense"},
        {"kind": ["step"]},
        {"session": bytes(15)},
        {"session": "0123456789abcdef"},
        {"rows": []},
        {"rows": [[1, 0, 0, 0]]},
        {"rows": [[1, 0, 2, 0], [1, 2, 2, 0]]},
        {"rows": [[1, MAX_POSITION, 1, 0]]},
        {"rows": [[1, -1, 2, 0]]},
        {"rows": [[1, 0, 2]]},
        {"rows": [[1, 0, True, 0]]},
        {"rows": [[i, 0, 1, 0] for i in range(MAX_ROWS + 1)]},
        {"codec": "fp8"},
        {"codec": None},
        {"codec": []},
        {"trace": [[1]]},
        {"trace": [[1, "2"]]},
        {"trace": [[1, 1]], "depths": [0, 0]},
        {"trace": [[1, 1]], "depths": [-1]},
        {"trace": [[1, 1]], "depths": [1 << 40]},
        {"trace": [[1, 1]], "depths": [0.5]},
        {"trace": [[1, 1]], "depths": 3},
    ],
)
def test_step_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    parse(encode(EXAMPLE))
    with pytest.raises(WireError):
        parse(encode({**EXAMPLE, **change}))


def test_long_sentence_of_a_fault_is_cut() -> None:
    fault = parse(Fault(SessionId(bytes(16)), FaultCode.GAP, "x" * 10_000).pack())
    assert isinstance(fault, Fault)
    assert len(fault.message) == 2048


def _parsed_or_refused(data: bytes) -> None:
    try:
        parse(data)
    except WireError:
        return


@pytest.mark.parametrize("depths", [(), (None,), (3,), (None, 70000)])
def test_hops_that_do_not_say_how_much_waits_may_be_named_or_left_out(depths: tuple[int | None, ...]) -> None:
    out = Out(SessionId(bytes(16)), (StepRow(RowId(1), 0, 2, 0),), "fp32", b"", ((1.0, 2.0), (3.0, 4.0)), depths)
    assert parse(out.pack()) == out
