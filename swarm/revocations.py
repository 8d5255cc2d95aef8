"""Which invites of a private swarm were taken back: signed entries that peers pass on until all have them."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgpack

from swarm import atomic
from swarm.errors import AccessError, UsageError
from swarm.identity import verify
from swarm.ids import PeerId
from swarm.invites import MAX_PASS, Invite, Pass, Role, holder_of, pack_grants, read_grants
from swarm.unpacking import unpack

__all__ = ["MAX_REVOCATIONS", "Revocation", "Revocations"]

MAX_REVOCATIONS = 512  # of one swarm; those that have ended make room
_REVOKED = b"swarm/1/revoked\0"


@dataclass(frozen=True, slots=True)
class Revocation:
    """That the holder of a key is let in no more, nor whom they invited; kept until Unix time `until`."""

    holder: PeerId
    until: float
    by: Pass
    sealed: bytes

    @classmethod
    def make(cls, invite: Invite, holder: PeerId, until: float) -> Self:
        """By the owner or an admin, whose `invite` it is. Raises UsageError without the right to it."""
        if invite.right.role < Role.ADMIN:
            raise UsageError(f"this invite is for the role {invite.right.role}: only an admin's can take others back")
        signature = invite.key.sign(_content(invite.swarm, holder, until))
        sealed = msgpack.packb([holder, until, pack_grants(invite.grants), signature])
        return cls(holder, until, invite.right, sealed)

    @classmethod
    def read(cls, sealed: object, swarm: PeerId) -> Self:
        """Raises AccessError."""
        if not isinstance(sealed, bytes) or len(sealed) > MAX_PASS:
            raise AccessError(f"a revocation has at most {MAX_PASS} bytes")
        try:
            holder, until, packed, signature = unpack(sealed)
        except (ValueError, TypeError) as error:
            raise AccessError(f"this is no revocation: {error}") from error
        grants = read_grants(packed)
        if not isinstance(holder, str) or type(until) is not float or not isinstance(signature, bytes):
            raise AccessError("a revocation names a key and a time")
        by = Pass(grants)
        signed = verify(holder_of(swarm, grants), _content(swarm, PeerId(holder), until), signature)
        if by.role < Role.ADMIN or not signed:
            raise AccessError("somebody took back what they had no right to take back")
        return cls(PeerId(holder), until, by, sealed)


def _content(swarm: PeerId, holder: PeerId, until: float) -> bytes:
    packed: bytes = msgpack.packb([swarm, holder, until])
    return _REVOKED + packed


class Revocations:
    """All that one peer knows of, in a file if `path` is given. What can't be read of it is forgotten."""

    def __init__(self, swarm: PeerId, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._swarm = swarm
        self._path = path
        self._clock = clock
        self._known: dict[PeerId, Revocation] = {}
        self._take(_read_file(path))

    def __contains__(self, holder: PeerId) -> bool:
        return holder in self._known

    @property
    def sealed(self) -> tuple[bytes, ...]:
        return tuple(entry.sealed for entry in self._known.values())

    def learn(self, entries: Iterable[object]) -> bool:
        """Whether any of these was news. What is not signed by who may is left out."""
        news = self._take(entries)
        if news and self._path is not None:
            atomic.write_file(self._path, msgpack.packb(list(self.sealed)))
        return news

    def _take(self, entries: Iterable[object]) -> bool:
        now, before = self._clock(), set(self._known)
        for sealed in entries:
            try:
                entry = Revocation.read(sealed, self._swarm)
            except AccessError:
                continue
            if entry.until > now < entry.by.expires and not any(grant.holder in self for grant in entry.by.grants):
                self._known[entry.holder] = entry
        lasting = sorted((entry for entry in self._known.values() if entry.until > now), key=lambda entry: -entry.until)
        self._known = {entry.holder: entry for entry in lasting[:MAX_REVOCATIONS]}
        return not before.issuperset(self._known)


def _read_file(path: Path | None) -> list[object]:
    if path is None or not path.exists():
        return []
    try:
        entries = unpack(path.read_bytes())
    except (OSError, ValueError):
        return []
    return entries if isinstance(entries, list) else []
