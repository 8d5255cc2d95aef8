"""Reading the fields of an untrusted header: each function gives a value of the right type and within bounds, or raises
WireError in a sentence that names the field. What a field is for is said in `swarm.messages`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swarm.errors import WireError
from swarm.ids import PeerId, RowId, SessionId

MAX_ROWS = 4096  # rows named by one frame
MAX_POSITION = 1 << 24  # tokens of one row
MAX_TEXT = 2048
KEY_BYTES = 32
MAX_KEYS = 4096  # of pages in one frame
MAX_DEPTH = 1 << 31  # tokens at one peer
CODECS = ("fp32", "fp16", "bf16", "int8")
GRADIENT_CODECS = ("grad8", "grad4")  # that only gradients travel in, the most exact first


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer and where it can be dialled."""

    peer: PeerId
    addresses: tuple[str, ...] = ()


def get(header: Mapping[str, Any], name: str) -> Any:
    try:
        return header[name]
    except KeyError:
        raise WireError(f"a {header.get('kind')!r} frame lacks the field '{name}'") from None


def whole(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise WireError(f"{what} is a whole number in {low}..{high}, not {str(value)[:40]!r}")
    return value


def text(value: Any, what: str, limit: int = MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise WireError(f"{what} is a text of at most {limit} characters")
    return value


def entries(value: Any, what: str, limit: int = MAX_ROWS) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise WireError(f"{what} is a list of at most {limit} entries")
    return value


def wholes(value: Any, count: int, what: str) -> tuple[int, ...]:
    entry = entries(value, what, count)
    if len(entry) != count:
        raise WireError(f"{what} has {count} numbers, not {len(entry)}")
    return tuple(whole(number, 0, 2 * MAX_POSITION, what) for number in entry)


def keys(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, bytes) or len(value) % KEY_BYTES or len(value) > MAX_KEYS * KEY_BYTES:
        raise WireError(f"keys are {KEY_BYTES} bytes each, {MAX_KEYS} at most")
    return tuple(value[begin : begin + KEY_BYTES] for begin in range(0, len(value), KEY_BYTES))


def session_id(value: Any) -> SessionId:
    if not isinstance(value, bytes) or len(value) != 16:
        raise WireError("a session id is 16 bytes")
    return SessionId(value)


def session_of(header: Mapping[str, Any]) -> SessionId:
    return session_id(get(header, "session"))


def next_session_of(header: Mapping[str, Any]) -> SessionId | None:
    value = header.get("next_session")
    return None if value is None else session_id(value)


def peer_or_none(value: Any) -> PeerId | None:
    return None if value is None else PeerId(text(value, "a peer id", 128))


def contact_or_none(value: Any) -> Contact | None:
    if value is None:
        return None
    entry = entries(value, "a contact", 2)
    if len(entry) != 2:
        raise WireError("a contact is a peer and its addresses")
    peer, addresses = entry
    texts = tuple(text(address, "an address", 512) for address in entries(addresses, "addresses", 32))
    return Contact(PeerId(text(peer, "a peer id", 128)), texts)


def pack_contact(contact: Contact | None) -> list[Any] | None:
    return None if contact is None else [contact.peer, list(contact.addresses)]


def codec_of(header: Mapping[str, Any]) -> str:
    return _codec(get(header, "codec"), CODECS)


def gradient_codec_of(header: Mapping[str, Any]) -> str:
    return _codec(get(header, "codec"), CODECS + GRADIENT_CODECS)


def codec_or_none(header: Mapping[str, Any], name: str, known: tuple[str, ...] = CODECS) -> str | None:
    """What may be left out."""
    value = header.get(name)
    return None if value is None else _codec(value, known)


def _codec(value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise WireError(f"unknown codec {str(value)[:40]!r}; known are {', '.join(known)}")
    return str(value)


def positions(value: Any) -> dict[RowId, int]:
    return {
        RowId(row): at for row, at in (wholes(entry, 2, "a row's position") for entry in entries(value, "positions"))
    }


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1e9


def trace_of(header: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    trace = entries(header.get("trace", []), "a trace", 256)
    if not all(isinstance(e, list) and len(e) == 2 and all(map(_is_time, e)) for e in trace):
        raise WireError("a trace is a list of (queue ms, compute ms)")
    return tuple((float(queue), float(compute)) for queue, compute in trace)


def depths_of(header: Mapping[str, Any], hops: int) -> tuple[int | None, ...]:
    """Tokens at each of `hops` peers; None of those that do not say."""
    depths = entries(header.get("depths", []), "depths", hops)
    return tuple(None if depth is None else whole(depth, 0, MAX_DEPTH, "a depth") for depth in depths)
