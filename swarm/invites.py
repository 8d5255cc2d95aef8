"""Private swarms: who may do what in one, said by signatures.

A private swarm is known by the id of its owner's key. An *invite* is one line of text for whoever is invited: where the
swarm can be found, and a key with the right to something, the *grant*, signed by the owner, or by somebody whom the
owner made an admin. The line is a secret: whoever has it is invited.

Nobody shows an invite to a peer. What a peer is shown is a *pass*: the grants of an invite, and a signature by its key
over the id of the peer that shows it, which the transport has proved. So a pass that somebody else has seen is of no
use to them.
"""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Self

import msgpack

from swarm.entrance import INVITE
from swarm.errors import AccessError, UsageError
from swarm.identity import Identity, verify
from swarm.ids import PeerId
from swarm.unpacking import unpack

__all__ = [
    "MAX_PASS",
    "MAX_TEXT",
    "Grant",
    "Invite",
    "Pass",
    "Role",
    "holder_of",
    "pack_grants",
    "read_grants",
    "read_pass",
    "short_id",
]

MAX_PASS = 1024  # bytes
MAX_TEXT = 8192  # characters of an invite
MAX_GRANTS = 3  # an owner, an admin, an admin's admin, and whoever that one invites
MAX_ADDRESSES = 8

_GRANT = b"swarm/1/grant\0"  # signed along, so that no other signature can pass for this one
_PASS = b"swarm/1/pass\0"
_MAX_ID = 64
_FOREVER = 1e11  # seconds: later than any time that makes sense


class Role(IntEnum):
    """What one may do; each includes those before it."""

    USE = 1  # read the directory, open sessions
    SERVE = 2  # announce blocks
    ADMIN = 3  # invite others, and take invites back

    @classmethod
    def named(cls, name: str) -> Self:
        """Raises UsageError."""
        try:
            return cls[name.upper()]
        except KeyError:
            raise UsageError(f"a role is one of {', '.join(map(str, cls))}, not '{name}'") from None

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Grant:
    """That the holder of a key may do something until a time (Unix), signed by who granted it."""

    holder: PeerId
    role: Role
    expires: float
    signature: bytes = field(repr=False)

    def content(self, swarm: PeerId) -> bytes:
        packed: bytes = msgpack.packb([swarm, self.holder, int(self.role), self.expires])
        return _GRANT + packed


@dataclass(frozen=True, slots=True)
class Pass:
    """What a peer that showed one may do. `grants`: none for the owner."""

    grants: tuple[Grant, ...]

    @property
    def role(self) -> Role:
        return self.grants[-1].role if self.grants else Role.ADMIN

    @property
    def expires(self) -> float:
        return min((grant.expires for grant in self.grants), default=_FOREVER)


@dataclass(frozen=True, slots=True)
class Invite:
    """The way into a private swarm, with the right to something there. The owner's own has no grants: its `key` is the
    swarm's. `addresses`: multiaddresses of peers in it."""

    swarm: PeerId
    key: Identity
    grants: tuple[Grant, ...] = ()
    addresses: tuple[str, ...] = ()

    @classmethod
    def found(cls) -> Self:
        """The owner's, of a new swarm."""
        key = Identity.ephemeral()
        return cls(key.peer_id, key)

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises UsageError."""
        try:
            return cls._read(text.strip())
        except (ValueError, TypeError, AccessError) as error:
            raise UsageError(f"this invite is damaged ({error}): ask for it again, and paste all of it") from None

    @classmethod
    def _read(cls, text: str) -> Self:
        if not text.startswith(INVITE) or len(text) > MAX_TEXT:
            raise ValueError(f"an invite begins with {INVITE}")
        packed = unpack(base64.urlsafe_b64decode(text.removeprefix(INVITE) + "==="))
        swarm, seed, grants, addresses = packed
        if not isinstance(swarm, str) or not isinstance(seed, bytes) or len(seed) != 32:
            raise ValueError("it names no swarm and no key")
        if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
            raise ValueError("it has no addresses")
        invite = cls(PeerId(swarm), Identity.derived(seed), read_grants(grants), tuple(addresses[:MAX_ADDRESSES]))
        read_pass(invite.show(invite.key.peer_id), invite.swarm, invite.key.peer_id)  # all is signed as it should be
        return invite

    def text(self) -> str:
        """The line for who is invited. Secret."""
        addresses = list(self.addresses[:MAX_ADDRESSES])
        packed = msgpack.packb([self.swarm, self.key.secret, pack_grants(self.grants), addresses])
        return INVITE + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    def __repr__(self) -> str:
        return f"Invite({short_id(self.key.peer_id)} of swarm {short_id(self.swarm)})"  # and never its key

    @property
    def right(self) -> Pass:
        return Pass(self.grants)

    def invite(self, role: Role, expires: float) -> Self:
        """One for somebody else, until `expires` (Unix time) at most. Raises UsageError without the right to it."""
        if self.right.role < Role.ADMIN:
            raise UsageError(f"this invite is for the role {self.right.role}: only an admin's can make others")
        if self.right.expires <= time.time():
            raise UsageError("this invite has ended, so it can't make others: ask the swarm's owner for a new one")
        if len(self.grants) == MAX_GRANTS:
            raise UsageError("this invite came from an admin's admin: ask one nearer to the owner to invite others")
        key = Identity.ephemeral()
        draft = Grant(key.peer_id, role, float(expires), b"")
        granted = replace(draft, signature=self.key.sign(draft.content(self.swarm)))
        return replace(self, key=key, grants=(*self.grants, granted))

    def show(self, peer: PeerId) -> bytes:
        """The pass of `peer`, which holds this invite."""
        signature = self.key.sign(_pass_content(self.swarm, peer))
        shown: bytes = msgpack.packb([pack_grants(self.grants), signature])
        return shown


def read_pass(shown: bytes, swarm: PeerId, peer: PeerId) -> Pass:
    """What `peer` may do in `swarm`, judged by all signatures but not by time. Raises AccessError."""
    if len(shown) > MAX_PASS:
        raise AccessError(f"a pass has at most {MAX_PASS} bytes")
    try:
        packed, signature = unpack(shown)
        grants = read_grants(packed)
    except (ValueError, TypeError) as error:  # TypeError: it is no pair
        raise AccessError(f"this is no pass: {error}") from error
    signer = holder_of(swarm, grants)
    if not isinstance(signature, bytes) or not verify(signer, _pass_content(swarm, peer), signature):
        raise AccessError(f"the pass was not made for peer {peer} and this swarm")
    return Pass(grants)


def _pass_content(swarm: PeerId, peer: PeerId) -> bytes:
    return _PASS + swarm.encode() + peer.encode()


def holder_of(swarm: PeerId, grants: Sequence[Grant]) -> PeerId:
    """The key that the last of `grants` is for, each being signed by the holder of the one before, an admin. Raises
    AccessError."""
    signer, role = swarm, Role.ADMIN
    for grant in grants:
        if role < Role.ADMIN or not verify(signer, grant.content(swarm), grant.signature):
            raise AccessError("the invite is not by this swarm's owner, nor by an admin of it")
        signer, role = grant.holder, grant.role
    return signer


def pack_grants(grants: Sequence[Grant]) -> list[Any]:
    return [[grant.holder, int(grant.role), grant.expires, grant.signature] for grant in grants]


def read_grants(packed: object) -> tuple[Grant, ...]:
    if not isinstance(packed, list) or len(packed) > MAX_GRANTS:
        raise AccessError(f"grants are a list of at most {MAX_GRANTS}")
    return tuple(map(_read_grant, packed))


def _read_grant(packed: object) -> Grant:
    if not isinstance(packed, list) or len(packed) != 4:
        raise AccessError("a grant has four parts")
    holder, role, expires, signature = packed
    if not isinstance(holder, str) or len(holder) > _MAX_ID or not isinstance(signature, bytes):
        raise AccessError("a grant is for a key, and signed")
    if type(expires) is not float or not 0 <= expires <= _FOREVER:
        raise AccessError("a grant ends at a time")
    if type(role) is not int or role not in Role.__members__.values():
        raise AccessError("a grant is for a role that there is")
    return Grant(PeerId(holder), Role(role), expires, signature)


def short_id(key: PeerId) -> str:
    """How people name an invite: the end of its key's id."""
    return key[-8:]
