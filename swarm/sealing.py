"""A record on its way between strangers: `msgpack [payload, signature]`, signed by the announcing peer's own identity.

What comes out of `unseal` is safe to keep, to compare and to print: every field is bounded, texts hold no control
characters, numbers are finite. Unknown fields are ignored, so that later versions may add some.

A presence is `[payload, signature, signature of the run's key]`: who does not hold that key can make none, and every
node of the DHT can tell.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgpack

from swarm.errors import RecordError, UsageError
from swarm.identity import Identity, verify
from swarm.ids import ADAPTER_NAME, MAX_ADAPTERS, Digest, PeerId, Span
from swarm.messages import Contact
from swarm.record import MOST_NEAR, Announced, PeerRecord, PeerState, Presence
from swarm.training import DIGEST_BYTES
from swarm.unpacking import unpack

__all__ = [
    "CLOCK_TOLERANCE",
    "MAX_LIFETIME",
    "MAX_RECORD",
    "check_live",
    "check_times",
    "open_presence",
    "open_sealed",
    "printable",
    "seal",
    "seal_presence",
    "unseal",
]

MAX_RECORD = 3072  # bytes of a sealed record
MAX_LIFETIME = 300.0  # seconds between issuing and expiry
CLOCK_TOLERANCE = 5.0  # seconds that the clocks of two peers may differ

_CONTEXT = b"swarm/1/record\0"  # signed along, so that no other signature of this identity can pass for a record
_PRESENCE = b"swarm/1/presence\0"
_MAX_ADDRESSES = 16
_MAX_ADDRESS = 256
_MAX_BLOCKS = 4096
_MAX_COUNT = 1 << 48
_MAX_RATE = 1e12
_MAX_DELAY = 60.0  # s
_MAX_NAME = 128  # characters of a model's name
_MAX_WORD = 32  # of a precision or a version
_MAX_PUBLIC_NAME = 64
_MAX_REASON = 256
_HEX = frozenset("0123456789abcdef")


def seal(record: PeerRecord, identity: Identity) -> bytes:
    """`record` signed by `identity`, whose own it must be. Control characters in what people write (public name and
    reason) are dropped and both are cut to size; anything else that `unseal` would refuse raises RecordError."""
    if record.peer != identity.peer_id:
        raise RecordError(f"a record of peer {record.peer} can't be signed by {identity.peer_id}")
    record = replace(
        record,
        public_name=printable(record.public_name)[:_MAX_PUBLIC_NAME],
        reason=printable(record.reason)[:_MAX_REASON],
    )
    payload: bytes = msgpack.packb(_fields(record))
    sealed: bytes = msgpack.packb([payload, identity.sign(_CONTEXT + payload)])
    open_sealed(sealed)
    return sealed


def unseal(sealed: bytes, now: float) -> PeerRecord:
    """The record in `sealed`, live at Unix time `now`. Raises RecordError."""
    record = open_sealed(sealed)
    check_live(record, now)
    return record


def seal_presence(presence: Presence, identity: Identity, run: Identity) -> bytes:
    """`presence` signed by both, whose own it must be. Raises RecordError."""
    if (presence.peer, presence.run) != (identity.peer_id, run.peer_id):
        raise RecordError(f"a presence of {presence.peer} in {presence.run} is signed by these two, and nobody else")
    payload: bytes = msgpack.packb(
        {
            "peer": presence.peer,
            "addresses": list(presence.contact.addresses),
            "run": presence.run,
            "issued": presence.issued,
            "expires": presence.expires,
        }
    )
    sealed: bytes = msgpack.packb([payload, *(key.sign(_PRESENCE + payload) for key in (identity, run))])
    open_presence(sealed)
    return sealed


def check_live(record: Announced, now: float) -> None:
    """Raises RecordError for a record that nobody keeps at Unix time `now`."""
    check_times(record, now)
    if record.expires <= now:
        raise RecordError(f"the record of peer {record.peer} expired {now - record.expires:.1f} s ago")


def check_times(record: Announced, now: float) -> None:
    """Raises RecordError for a record that lives too long or comes from the future; a stale one passes."""
    if not record.issued < record.expires <= record.issued + MAX_LIFETIME:
        raise RecordError(f"a record lives at most {MAX_LIFETIME:g} s, not {record.expires - record.issued:g} s")
    if record.issued > now + CLOCK_TOLERANCE:
        raise RecordError(f"the record of peer {record.peer} is from the future: one of the two clocks is wrong")


def open_sealed(sealed: bytes) -> PeerRecord:
    """As `unseal`, whatever the time is: size, signature and every field are checked."""
    payload, fields, (signature,) = _envelope(sealed, 1)
    record = _parsed(fields)
    if not verify(record.peer, _CONTEXT + payload, signature):
        raise RecordError(f"the record of peer {record.peer} was not signed by that peer")
    return record


def open_presence(sealed: bytes) -> Presence:
    """As `open_sealed`. Raises RecordError."""
    payload, fields, signatures = _envelope(sealed, 2)
    peer, run = (PeerId(_text(fields, name, _MAX_WORD * 2)) for name in ("peer", "run"))
    times = (_number(fields, name, _MAX_RATE) for name in ("issued", "expires"))
    presence = Presence(Contact(peer, _addresses(fields, peer)), run, *times)
    for signer, signature in zip((peer, run), signatures, strict=True):
        if not verify(signer, _PRESENCE + payload, signature):
            raise RecordError(f"the presence of peer {peer} in {run} was not signed by {signer}")
    return presence


def _envelope(sealed: bytes, signatures: int) -> tuple[bytes, Mapping[str, Any], list[bytes]]:
    """The payload as bytes and as fields, and so many signatures."""
    if len(sealed) > MAX_RECORD:
        raise RecordError(f"a record has at most {MAX_RECORD} bytes, this one has {len(sealed)}")
    parts = _unpack(sealed)
    if not (isinstance(parts, list) and len(parts) == 1 + signatures and all(isinstance(p, bytes) for p in parts)):
        raise RecordError("a sealed record is a list of payload and signature")
    fields = _unpack(parts[0])
    if not isinstance(fields, dict):
        raise RecordError("a record's payload is a map")
    return parts[0], fields, parts[1:]


def _unpack(data: bytes) -> Any:
    try:
        return unpack(data)
    except ValueError as error:
        raise RecordError(f"a record that is no msgpack: {error}") from error


def _fields(record: PeerRecord) -> dict[str, Any]:
    adapters = [[name, bytes.fromhex(digest)] for name, digest in record.adapters]
    fields: dict[str, Any] = {
        "peer": record.peer,
        "addresses": list(record.contact.addresses),
        "model": record.model,
        "model_name": record.model_name,
        "num_blocks": record.num_blocks,
        "span": [record.span.start, record.span.end],
        "state": str(record.state),
        "throughput": record.throughput,
        "prefill": record.prefill,
        "cache_left": record.cache_left,
        "precision": record.precision,
        "version": record.version,
        "public_name": record.public_name,
        "reason": record.reason,
        "queue": record.queue,
        "issued": record.issued,
        "expires": record.expires,
    }
    if adapters:
        fields["adapters"] = adapters
    if not record.trains:
        fields["trains"] = False  # left out: it does, as in earlier versions
    if record.fixed:
        fields["fixed"] = True
    if record.near:
        fields["near"] = [[peer, delay] for peer, delay in record.near]
    return fields


def _parsed(fields: Mapping[str, Any]) -> PeerRecord:
    num_blocks = _count(fields, "num_blocks", _MAX_BLOCKS)
    peer = PeerId(_text(fields, "peer", _MAX_WORD * 2))
    return PeerRecord(
        contact=Contact(peer, _addresses(fields, peer)),
        model=_digest(fields),
        model_name=_text(fields, "model_name", _MAX_NAME),
        num_blocks=num_blocks,
        span=_span(fields, num_blocks),
        state=_state(fields),
        throughput=_number(fields, "throughput", _MAX_RATE),
        prefill=_number(fields, "prefill", _MAX_RATE),
        cache_left=_count(fields, "cache_left"),
        precision=_text(fields, "precision", _MAX_WORD),
        version=_text(fields, "version", _MAX_WORD),
        public_name=_text(fields, "public_name", _MAX_PUBLIC_NAME),
        reason=_text(fields, "reason", _MAX_REASON),
        queue=_count(fields, "queue"),
        issued=_number(fields, "issued", _MAX_RATE),
        expires=_number(fields, "expires", _MAX_RATE),
        adapters=_adapters(fields),
        trains=_flag(fields, "trains", default=True),
        fixed=_flag(fields, "fixed", default=False),
        near=_near(fields),
    )


def _text(fields: Mapping[str, Any], name: str, limit: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise RecordError(f"a record's {name} is a printable text of at most {limit} characters")
    return value


def _count(fields: Mapping[str, Any], name: str, limit: int = _MAX_COUNT) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= limit:
        raise RecordError(f"a record's {name} is a whole number in 0..{limit}")
    return value


def _number(fields: Mapping[str, Any], name: str, limit: float) -> float:
    value: Any = fields.get(name)
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= limit:
        raise RecordError(f"a record's {name} is a finite number, zero or more")
    return float(value)


def _flag(fields: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise RecordError(f"a record's {name} is true or false")
    return value


def _digest(fields: Mapping[str, Any]) -> Digest:
    value = _text(fields, "model", 64)
    if len(value) != 64 or not _HEX.issuperset(value):
        raise RecordError("a record's model is a digest of 64 hex digits")
    return Digest(value)


def _span(fields: Mapping[str, Any], num_blocks: int) -> Span:
    value = fields.get("span")
    if not (isinstance(value, list) and len(value) == 2 and all(type(bound) is int for bound in value)):
        raise RecordError("a record's span is a pair of blocks")
    try:
        span = Span(*value)
    except UsageError as error:
        raise RecordError(str(error)) from None
    if span.end > num_blocks:
        raise RecordError(f"a record's span {span} ends beyond the {num_blocks} blocks of its model")
    return span


def _state(fields: Mapping[str, Any]) -> PeerState:
    try:
        return PeerState(_text(fields, "state", _MAX_WORD))
    except ValueError:
        raise RecordError(f"a record's state is one of {', '.join(PeerState)}") from None


def _addresses(fields: Mapping[str, Any], peer: PeerId) -> tuple[str, ...]:
    value = fields.get("addresses")
    if not isinstance(value, list) or len(value) > _MAX_ADDRESSES:
        raise RecordError(f"a record's addresses are a list of at most {_MAX_ADDRESSES}")
    texts = tuple(_text({"address": address}, "address", _MAX_ADDRESS) for address in value)
    if not all(text.startswith("/") and text.endswith(f"/p2p/{peer}") for text in texts):
        raise RecordError("a record's addresses are multiaddresses that end in its peer's id")
    return texts


def _adapters(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    value = fields.get("adapters", [])
    if not isinstance(value, list) or len(value) > MAX_ADAPTERS:
        raise RecordError(f"a record's adapters are a list of at most {MAX_ADAPTERS}")
    adapters = tuple(map(_adapter, value))
    if len({name for name, _ in adapters}) != len(adapters):
        raise RecordError("a record names each of its adapters otherwise")
    return adapters


def _adapter(entry: object) -> tuple[str, str]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise RecordError("an adapter in a record is a name and a digest")
    name, digest = entry
    if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
        raise RecordError(f"the digest of an adapter in a record has {DIGEST_BYTES} bytes")
    if not isinstance(name, str) or ADAPTER_NAME.fullmatch(name) is None:
        raise RecordError("the name of an adapter in a record is at most 32 letters, digits, dots, dashes, underscores")
    return name, digest.hex()


def _near(fields: Mapping[str, Any]) -> tuple[tuple[PeerId, float], ...]:
    value = fields.get("near", [])
    pairs = isinstance(value, list) and all(isinstance(entry, list) and len(entry) == 2 for entry in value)
    if not pairs or len(value) > MOST_NEAR:
        raise RecordError(f"a record's neighbours are a list of at most {MOST_NEAR} pairs")
    named = [{"neighbour": peer, "delay": delay} for peer, delay in value]
    return tuple(
        (PeerId(_text(each, "neighbour", _MAX_WORD * 2)), _number(each, "delay", _MAX_DELAY)) for each in named
    )


def printable(text: str) -> str:
    """Without control characters and the like."""
    return "".join(character for character in text if character.isprintable())
