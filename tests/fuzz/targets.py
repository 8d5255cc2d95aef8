"""What strangers' bytes may do to whoever reads them: become a value that survives the way back, or the error that the
reader is told to expect. Anything else that a target raises is found.

Nothing heavy is imported: the fuzzer instruments all of it.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import msgpack

from clients.federated.frames import claims_in, opened, sealed, sender, signed_in
from swarm import fields
from swarm.errors import AccessError, RecordError, UsageError, WireError
from swarm.identity import Identity
from swarm.invites import INVITE, Invite, Role, read_pass
from swarm.messages import parse
from swarm.revocations import Revocation
from swarm.sealing import open_presence, open_sealed, seal, seal_presence
from swarm.wire import MAX_HEADER, TOTAL, checked_total, decode, encode

__all__ = ["TARGETS", "as_frame"]

ME, RUN = Identity.derived(bytes(32)), Identity.derived(bytes(31) + b"\1")
OWNER = Invite(ME.peer_id, ME)
RUN_KEY = bytes(32)

Target = Callable[[bytes], object]


def as_frame(packed: bytes, body: bytes = b"") -> bytes:
    """A frame with these bytes for a header, whatever they are."""
    return TOTAL.pack(4 + len(packed) + len(body)) + TOTAL.pack(len(packed)) + packed + body


def frame(data: bytes) -> None:
    try:
        checked_total(data[:4].ljust(4, b"\0"))
        read = decode(data)
    except WireError:
        return
    again = decode(encode(read.header, read.body))
    assert repr(again.header) == repr(read.header)  # as text: what is no number is unlike itself
    assert again.body == read.body


def header(data: bytes) -> None:
    message(as_frame(data))


def message(data: bytes) -> None:
    try:
        read = parse(data)
    except WireError:
        return
    if len(data) < MAX_HEADER // 2:  # what was packed tighter than we do would not fit a header
        assert parse(read.pack()) == read


def record(data: bytes) -> None:
    """What somebody signed, and what nobody did."""
    for packed in (data, _signed(data, b"swarm/1/record\0", ME)):
        try:
            read = open_sealed(packed)
        except RecordError:
            continue
        assert open_sealed(seal(read, ME)) == read


def presence(data: bytes) -> None:
    for packed in (data, _signed(data, b"swarm/1/presence\0", ME, RUN)):
        try:
            read = open_presence(packed)
        except RecordError:
            continue
        assert open_presence(seal_presence(read, ME, RUN)) == read


def invite(data: bytes) -> None:
    for text in (data.decode("latin-1"), INVITE + data.decode("latin-1")):
        try:
            read = Invite.read(text)
        except UsageError:
            continue
        assert Invite.read(read.text()).text() == read.text()


def shown(data: bytes) -> None:
    """A pass, and what takes an invite back."""
    for packed in (data, msgpack.packb([[], data])):
        try:
            assert read_pass(packed, ME.peer_id, ME.peer_id).role is Role.ADMIN
        except AccessError:
            continue
    try:
        Revocation.read(data, ME.peer_id)
    except AccessError:
        return


def member(data: bytes) -> None:
    """What members of a federated run hear, from strangers and from members."""
    try:
        said = opened(sender(decode(data)), RUN_KEY)
    except WireError:
        said = {}
    for each in (said, _map(data)):
        spoken = opened(sealed(ME, RUN_KEY, **{str(name): value for name, value in each.items()}), RUN_KEY)
        try:
            signed_in(spoken.get("signed"), 64)
            for claim in claims_in(spoken, RUN_KEY, 1 << 20, 64):
                assert isfinite(claim.tokens)
        except WireError:
            continue


def contact(data: bytes) -> None:
    try:
        read = fields.contact_or_none(_map(data).get("next"))
    except WireError:
        return
    assert fields.contact_or_none(fields.pack_contact(read)) == read


def _signed(payload: bytes, context: bytes, *signers: Identity) -> bytes:
    """With the signers' names in it, as somebody would who signs whatever they like."""
    said = _map(payload)
    if said:
        payload = msgpack.packb({**said, "peer": ME.peer_id, "run": RUN.peer_id})
    packed: bytes = msgpack.packb([payload, *(signer.sign(context + payload) for signer in signers)])
    return packed


def _map(data: bytes) -> Mapping[Any, Any]:
    try:
        read = decode(as_frame(data)).header
        msgpack.packb(read)
    except (WireError, ValueError):
        return {}
    return read


TARGETS: Mapping[str, Target] = {
    each.__name__: each for each in (frame, header, message, record, presence, invite, shown, member, contact)
}
