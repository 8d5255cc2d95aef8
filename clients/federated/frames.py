"""What members say to each other. Every frame is signed by its sender, over a digest keyed by the run: whoever does not
know the run's name and terms can neither speak in it nor be answered.

| frame  | meaning                                                                   |
|--------|---------------------------------------------------------------------------|
| status | where I stand: round, digest of my state, my addresses and those I know;  |
|        | what members have signed who stood there, which may be passed on          |
| claim  | my change in a round: its digest, tokens, loss; from which state it began |
| tally  | the claims of a round whose changes I have                                |
| want   | send me the bytes with this digest                                        |
| piece  | some of them; none and a total of zero: I don't have them                 |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgpack

from swarm import fields
from swarm.errors import WireError
from swarm.identity import Identity, verify
from swarm.ids import PeerId
from swarm.unpacking import unpack
from swarm.wire import Frame, encode

__all__ = [
    "PIECE",
    "Claim",
    "Signed",
    "claims_in",
    "content",
    "digest_of",
    "framed",
    "opened",
    "sealed",
    "sender",
    "signed_in",
]

PIECE = 4 << 20  # bytes of one piece
CONTEXT = b"swarm/1/run\0"  # signed along, so that no other signature of this identity can pass for one of these
DIGEST = 32
MAX_PAYLOAD = 128 << 10


@dataclass(frozen=True, slots=True)
class Signed:
    """A payload with who said it; may be passed on by anybody."""

    by: PeerId
    payload: bytes
    signature: bytes

    def pack(self) -> list[Any]:
        return [self.by, self.payload, self.signature]


@dataclass(frozen=True, slots=True)
class Claim:
    round: int
    base: bytes
    delta: bytes
    tokens: int
    loss: float
    signed: Signed

    @property
    def member(self) -> PeerId:
        return self.signed.by

    @property
    def entry(self) -> tuple[PeerId, bytes]:
        """What a tally counts: two claims of one member are two entries."""
        return self.signed.by, content(self.signed.payload)

    @classmethod
    def parse(cls, signed: Signed, said: Mapping[str, Any], most_tokens: int) -> "Claim":
        loss = said.get("loss")
        if not isinstance(loss, float):
            raise WireError("a claim's loss is a number")
        return cls(
            fields.whole(said.get("round"), 0, fields.MAX_POSITION, "a round"),
            digest_of(said.get("base")),
            digest_of(said.get("delta")),
            fields.whole(said.get("tokens"), 1, most_tokens, "a claim's tokens"),
            loss,
            signed,
        )


def content(data: bytes | bytearray) -> bytes:
    """The 32 bytes that name `data`."""
    return blake2b(data, digest_size=DIGEST).digest()


def sealed(identity: Identity, key: bytes, **said: Any) -> Signed:
    payload: bytes = msgpack.packb(said)
    return Signed(identity.peer_id, payload, identity.sign(CONTEXT + _keyed(payload, key)))


def framed(signed: Signed, body: bytes | memoryview = b"") -> bytes:
    return encode({"kind": "run", "signed": signed.pack()}, body)


def sender(frame: Frame) -> Signed:
    """Raises WireError."""
    return _signed(frame.header.get("signed"))


def opened(signed: Signed, key: bytes) -> dict[str, Any]:
    """What was said. Raises WireError for what no member has signed."""
    if not verify(signed.by, CONTEXT + _keyed(signed.payload, key), signed.signature):
        raise WireError(f"{signed.by} is no member of this run, or has other settings")
    try:
        said = unpack(signed.payload)
    except ValueError as error:
        raise WireError(f"a payload that is no msgpack: {error}") from error
    if not isinstance(said, dict):
        raise WireError("a payload is a map")
    return said


def claims_in(said: Mapping[str, Any], key: bytes, most_tokens: int, limit: int) -> list[Claim]:
    """The claims that a tally passes on. Raises WireError."""
    signed = signed_in(said.get("claims"), limit)
    return [Claim.parse(each, opened(each, key), most_tokens) for each in signed]


def signed_in(value: object, limit: int) -> list[Signed]:
    """Payloads that somebody passes on, not yet opened. Raises WireError."""
    return [_signed(entry) for entry in fields.entries(value, "signed payloads", limit)]


def digest_of(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != DIGEST:
        raise WireError(f"a digest is {DIGEST} bytes")
    return value


def _signed(value: object) -> Signed:
    entry = fields.entries(value, "a signed payload", 3)
    if len(entry) != 3 or not all(isinstance(part, bytes) for part in entry[1:]) or len(entry[1]) > MAX_PAYLOAD:
        raise WireError(f"a signed payload is a peer, at most {MAX_PAYLOAD} bytes, and a signature")
    return Signed(PeerId(fields.text(entry[0], "a peer id", 128)), entry[1], entry[2])


def _keyed(payload: bytes, key: bytes) -> bytes:
    return blake2b(payload, digest_size=DIGEST, key=key).digest()
