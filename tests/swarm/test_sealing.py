"""Sealed records: what a peer signs comes out as it went in; what it did not sign, or may not say, never comes out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import RecordError
from swarm.identity import Identity
from swarm.ids import Digest, PeerId, Span
from swarm.messages import Contact
from swarm.record import MOST_NEAR, PeerState
from swarm.sealing import (
    CLOCK_TOLERANCE,
    MAX_LIFETIME,
    MAX_RECORD,
    open_presence,
    open_sealed,
    seal,
    seal_presence,
    unseal,
)
from tests.swarm.records import presence_of, record_of

ADA = Identity.ephemeral()
BOB = Identity.ephemeral()
NOW = 1_800_000_000.0
RECORD = record_of(ADA.peer_id, issued=NOW, expires=NOW + 60)


def fields() -> dict[str, Any]:
    payload, _ = msgpack.unpackb(seal(RECORD, ADA))
    return dict(msgpack.unpackb(payload))


def signed(content: Mapping[str, Any], identity: Identity = ADA) -> bytes:
    """`content` signed as a hostile peer would, that is not bound to what `seal` allows."""
    payload = msgpack.packb(content)
    return bytes(msgpack.packb([payload, identity.sign(b"swarm/1/record\0" + payload)]))


def test_record_survives_the_way() -> None:
    assert unseal(seal(RECORD, ADA), NOW + 1) == RECORD


def test_record_with_many_addresses_fits() -> None:
    addresses = tuple(f"/ip4/203.0.113.{n}/tcp/31330/p2p/{ADA.peer_id}" for n in range(8))
    record = replace(RECORD, contact=Contact(ADA.peer_id, addresses))
    assert unseal(seal(record, ADA), NOW) == record


def test_record_with_many_addresses_adapters_and_neighbours_fits() -> None:
    relay = f"tcp/31330/p2p/{ADA.peer_id}/p2p-circuit/p2p/{ADA.peer_id}"
    addresses = tuple(f"/ip4/203.0.113.{n}/{relay}" for n in range(8))
    adapters = tuple((f"{n}" * 32, f"{n:032x}") for n in range(8))
    record = replace(RECORD, contact=Contact(ADA.peer_id, addresses), adapters=adapters, reason="y" * 200)
    record = replace(record, near=tuple((PeerId(f"{n}" * 52), 0.0123456789) for n in range(MOST_NEAR)))
    assert unseal(seal(record, ADA), NOW) == record


@pytest.mark.parametrize(
    "near",
    [
        7,
        {},
        [7],
        [["a"]],
        [["a", 0.1, 0.2]],
        [[b"a", 0.1]],
        [["a" * 65, 0.1]],
        [["a\n", 0.1]],
        [["a", "0.1"]],
        [["a", -0.1]],
        [["a", float("nan")]],
        [["a", 61.0]],
        [["a", True]],
        [[f"a{n}", 0.1] for n in range(MOST_NEAR + 1)],
    ],
    ids=str,
)
def test_neighbours_that_are_too_many_or_are_none_are_refused(near: Any) -> None:
    assert unseal(signed({**fields(), "near": [["a", 0.1]]}), NOW).near == ((PeerId("a"), 0.1),)
    with pytest.raises(RecordError):
        unseal(signed({**fields(), "near": near}), NOW)


@pytest.mark.parametrize(
    "adapters",
    [
        7,
        [7],
        [["a"]],
        [["a", "b" * 16]],
        [["a", b"1"]],
        [["a", b"1" * 17]],
        [["a\n", bytes(16)]],
        [["a" * 33, bytes(16)]],
        [["a:b", bytes(16)]],
        [[7, bytes(16)]],
        [["a", bytes(16)]] * 2,
        [[f"a{n}", bytes(16)] for n in range(9)],
    ],
    ids=str,
)
def test_adapters_that_are_too_many_or_are_none_are_refused(adapters: Any) -> None:
    with pytest.raises(RecordError):
        unseal(signed({**fields(), "adapters": adapters}), NOW)


@pytest.mark.parametrize("fixed", [True, False])
def test_record_says_whether_its_peer_stays_where_it_is(fixed: bool) -> None:
    assert unseal(seal(replace(RECORD, fixed=fixed), ADA), NOW).fixed is fixed
    assert "fixed" not in fields(), "earlier versions have none"


@pytest.mark.parametrize("trains", [True, False])
def test_record_says_whether_its_peer_trains(trains: bool) -> None:
    assert unseal(seal(replace(RECORD, trains=trains), ADA), NOW).trains is trains


def test_fields_of_a_later_version_are_ignored() -> None:
    assert unseal(signed({**fields(), "later": {"a": [1]}}), NOW) == RECORD


def test_what_people_write_loses_its_control_characters_and_is_cut() -> None:
    record = unseal(seal(replace(RECORD, public_name="A\x1b[31md\na\u202e" + "x" * 99, reason="y" * 999), ADA), NOW)
    assert record.public_name == "A[31mda" + "x" * 57
    assert record.reason == "y" * 256


def test_peer_can_sign_for_itself_alone() -> None:
    with pytest.raises(RecordError, match="can't be signed"):
        seal(RECORD, BOB)
    with pytest.raises(RecordError, match="was not signed by that peer"):
        unseal(signed(fields(), BOB), NOW)


def test_signature_of_something_else_is_no_signature_of_a_record() -> None:
    payload = msgpack.packb(fields())
    with pytest.raises(RecordError, match="not signed"):
        unseal(msgpack.packb([payload, ADA.sign(payload)]), NOW)


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    sealed = bytearray(seal(RECORD, ADA))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        unseal(bytes(sealed), NOW)


@given(st.binary(max_size=100))
def test_random_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(RecordError):
        unseal(data, NOW)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=17),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(fields())), ANYTHING)
def test_signed_field_of_any_content_is_a_record_or_refused(name: str, value: Any) -> None:
    try:
        record = open_sealed(signed({**fields(), name: value}))
    except RecordError:
        return
    assert open_sealed(seal(record, ADA)) == record


@given(ANYTHING)
def test_signed_payload_of_any_shape_is_refused(content: Any) -> None:
    with pytest.raises(RecordError):
        open_sealed(signed(content))


@pytest.mark.parametrize("name", sorted(fields()))
def test_missing_field_is_refused(name: str) -> None:
    content = fields()
    del content[name]
    with pytest.raises(RecordError):
        open_sealed(signed(content))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "ab" * 31),
        ("model", "AB" * 32),
        ("model", "zz" * 32),
        ("model_name", "x" * 129),
        ("model_name", "a\nb"),
        ("public_name", "\x1b[2J"),
        ("public_name", "x" * 65),
        ("reason", "line\r"),
        ("reason", "\u202eabc"),
        ("precision", b"fp32"),
        ("version", "x" * 33),
        ("span", [20, 10]),
        ("span", [10, 31]),
        ("span", [-1, 5]),
        ("span", [0, 1.5]),
        ("span", [1]),
        ("num_blocks", 10**9),
        ("num_blocks", True),
        ("state", "asleep"),
        ("throughput", float("nan")),
        ("throughput", float("inf")),
        ("throughput", -1.0),
        ("prefill", "fast"),
        ("cache_left", -1),
        ("cache_left", 1.0),
        ("queue", 1 << 60),
        ("issued", float("nan")),
        ("addresses", ["/ip4/192.0.2.7/tcp/1"] * 2),
        ("addresses", [f"/ip4/192.0.2.7/tcp/1/p2p/{BOB.peer_id}"]),
        ("addresses", [f"x/p2p/{ADA.peer_id}"]),
        ("addresses", [f"/p2p/{ADA.peer_id}"] * 17),
        ("addresses", "text"),
        ("trains", 0),
        ("fixed", "yes"),
    ],
)
def test_field_out_of_bounds_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RecordError):
        open_sealed(signed({**fields(), name: value}))


def test_record_over_its_size_is_refused_before_it_is_read() -> None:
    with pytest.raises(RecordError, match=f"at most {MAX_RECORD} bytes"):
        unseal(signed({**fields(), "later": "x" * MAX_RECORD}), NOW)


def test_own_record_over_its_size_is_not_sealed() -> None:
    addresses = tuple(f"/dns4/{'x' * 150}{n}.example/tcp/1/p2p/{ADA.peer_id}" for n in range(16))
    with pytest.raises(RecordError, match="bytes"):
        seal(replace(RECORD, contact=Contact(ADA.peer_id, addresses)), ADA)


def test_own_record_out_of_bounds_is_not_sealed() -> None:
    for record in (replace(RECORD, span=Span(10, 31)), replace(RECORD, model=Digest("no digest"))):
        with pytest.raises(RecordError):
            seal(record, ADA)


def test_expired_record_is_stale() -> None:
    sealed = seal(RECORD, ADA)
    assert unseal(sealed, RECORD.expires - 0.1) == RECORD
    with pytest.raises(RecordError, match="expired"):
        unseal(sealed, RECORD.expires)


def test_record_from_the_future_is_refused_beyond_what_clocks_differ() -> None:
    sealed = seal(RECORD, ADA)
    assert unseal(sealed, NOW - CLOCK_TOLERANCE) == RECORD
    with pytest.raises(RecordError, match="future"):
        unseal(sealed, NOW - CLOCK_TOLERANCE - 1)


@pytest.mark.parametrize("lifetime", [0.0, -1.0, MAX_LIFETIME + 1])
def test_record_of_a_wrong_lifetime_is_refused(lifetime: float) -> None:
    with pytest.raises(RecordError, match="lives"):
        unseal(seal(replace(RECORD, expires=NOW + lifetime), ADA), NOW - 1)


@pytest.mark.parametrize("state", list(PeerState))
def test_every_state_survives_the_way(state: PeerState) -> None:
    assert unseal(seal(replace(RECORD, state=state), ADA), NOW).state is state


RUN = Identity.derived(bytes(range(32)))
PRESENCE = presence_of(ADA.peer_id, RUN.peer_id, issued=NOW, expires=NOW + 60)


def both_signed(content: Mapping[str, Any], first: Identity = ADA, second: Identity = RUN) -> bytes:
    payload = msgpack.packb(content)
    signatures = [identity.sign(b"swarm/1/presence\0" + payload) for identity in (first, second)]
    return bytes(msgpack.packb([payload, *signatures]))


def presence_fields() -> dict[str, Any]:
    return dict(msgpack.unpackb(msgpack.unpackb(seal_presence(PRESENCE, ADA, RUN))[0]))


def test_presence_survives_the_way() -> None:
    assert open_presence(seal_presence(PRESENCE, ADA, RUN)) == PRESENCE
    assert open_presence(both_signed({**presence_fields(), "later": 1})) == PRESENCE


@pytest.mark.parametrize(("first", "second"), [(ADA, ADA), (ADA, BOB), (BOB, RUN), (RUN, ADA)])
def test_presence_that_member_and_run_have_not_both_signed_is_refused(first: Identity, second: Identity) -> None:
    with pytest.raises(RecordError, match="not signed by"):
        open_presence(both_signed(presence_fields(), first, second))
    with pytest.raises(RecordError):
        seal_presence(PRESENCE, first, second)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peer", 7),
        ("run", None),
        ("addresses", "x"),
        ("addresses", ["/ip4/192.0.2.7/tcp/1"]),
        ("addresses", [f"/ip4/192.0.2.7/tcp/{n}/p2p/{ADA.peer_id}" for n in range(17)]),
        ("issued", float("nan")),
        ("expires", -1),
        ("later", "x" * MAX_RECORD),
    ],
)
def test_presence_with_a_bad_field_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RecordError):
        open_presence(both_signed({**presence_fields(), name: value}))


def test_records_and_presences_are_not_taken_for_each_other() -> None:
    with pytest.raises(RecordError):
        open_presence(seal(RECORD, ADA))
    with pytest.raises(RecordError):
        open_sealed(seal_presence(PRESENCE, ADA, RUN))


@given(st.binary(max_size=300))
def test_bytes_of_a_stranger_are_no_presence(data: bytes) -> None:
    with pytest.raises(RecordError):
        open_presence(data)
