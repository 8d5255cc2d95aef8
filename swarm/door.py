"""The door of a private swarm: what a member shows others, whom it lets in, and how it learns who is let in no more.

A member's transport is gated: every stream begins with the pass of who opened it, and ends when that pass does. Beside
it one protocol is open to anyone: whoever knocks is told whether they may enter, and members tell each other which
invites were taken back.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from swarm import fields
from swarm.entrance import INVITE
from swarm.errors import AccessError, NetworkError, StreamClosed, UsageError, WireError
from swarm.ids import PeerId
from swarm.invites import MAX_PASS, MAX_TEXT, Invite, Pass, Role, read_pass, short_id
from swarm.revocations import MAX_REVOCATIONS, Revocations
from swarm.sealing import printable
from swarm.transport import Handler, Stream, Transport
from swarm.wire import decode, encode

__all__ = ["Door", "GatedTransport", "knock", "serve_door", "way_in"]

PROTOCOL = "/swarm/1/door"
KNOCK_SECONDS = 10.0  # for one who knocks to be answered, dialling included
PASS_SECONDS = 10.0  # between the opening of a stream and its pass
MAX_FIRST = MAX_PASS + 256  # bytes of a stream's first frame
MAX_SEEN = 4096  # passes whose signatures are remembered


def way_in(texts: Iterable[str]) -> tuple[tuple[str, ...], Invite | None]:
    """The addresses among these, and the invite, if one is: its line, or `@` and the file that holds it. Raises
    UsageError."""
    addresses: list[str] = []
    lines: list[str] = []
    for text in texts:
        line = _secret(Path(text[1:]).expanduser()) if text.startswith("@") else text
        (lines if line.startswith(INVITE) else addresses).append(line)
    if len(lines) > 1:
        raise UsageError(f"{len(lines)} invites were given: one is enough, and each is for one swarm")
    if not lines:
        return tuple(addresses), None
    invite = Invite.read(lines[0])
    if invite.right.expires <= time.time():
        raise UsageError("this invite has ended: ask for a new one (swarm invite, on the machine of who invited you)")
    return tuple(dict.fromkeys((*addresses, *invite.addresses))), invite


def _secret(path: Path) -> str:
    try:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"others can read the invite in {path}; run: chmod 600 {path}")
            return file.read(MAX_TEXT + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the invite in {path} can't be read: {error}") from error


class Door:
    """Of one peer that is a member by `invite`."""

    def __init__(
        self,
        invite: Invite,
        peer: PeerId,
        revocations: Revocations | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.own = invite.show(peer)
        self.revocations = revocations or Revocations(invite.swarm, clock=clock)
        self._swarm = invite.swarm
        self._clock = clock
        self._read = lru_cache(maxsize=MAX_SEEN)(read_pass)

    def admit(self, peer: PeerId, shown: bytes, role: Role) -> Pass:
        """What `peer` may do, which is at least what `role` may. Raises AccessError."""
        if not shown:
            raise AccessError("this swarm is private: ask its owner for an invite, and give it as --initial-peers")
        found = self._read(shown, self._swarm, peer)
        if found.expires <= self._clock():
            raise AccessError("the invite has ended: ask for a new one")
        for grant in found.grants:
            if grant.holder in self.revocations:
                raise AccessError(f"the invite {short_id(grant.holder)} was taken back")
        if found.role < role:
            raise AccessError(f"an invite with the role {role} is needed for that, and this one has {found.role}")
        return found


class GatedTransport(Transport):
    """`inner`, among members alone."""

    def __init__(self, inner: Transport, door: Door) -> None:
        self.peer_id = inner.peer_id
        self.door = door
        self._inner = inner
        self._guests: dict[Stream, bytes] = {}  # streams that others have opened, and their passes

    async def open(self, peer: PeerId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        stream = await self._inner.open(peer, protocol, addresses)
        await stream.send(encode({"kind": "pass", "pass": self.door.own}))
        return stream

    async def serve(self, protocol: str, handler: Handler) -> None:
        async def gated(stream: Stream) -> None:
            try:
                async with asyncio.timeout(PASS_SECONDS):
                    shown = _first(await stream.receive())
            except TimeoutError:
                raise WireError("who opens a stream shows a pass first") from None
            self.door.admit(stream.remote, shown, Role.USE)
            self._guests[stream] = shown
            try:
                await handler(stream)
            finally:
                del self._guests[stream]

        await self._inner.serve(protocol, gated)

    def sweep(self) -> None:
        """End the streams of those who are let in no more."""
        for stream, shown in list(self._guests.items()):
            try:
                self.door.admit(stream.remote, shown, Role.USE)
            except AccessError:
                stream.close()

    async def addresses(self) -> tuple[str, ...]:
        return await self._inner.addresses()

    async def close(self) -> None:
        await self._inner.close()


def _first(frame: bytes) -> bytes:
    if len(frame) > MAX_FIRST:
        raise WireError(f"a pass comes in a frame of at most {MAX_FIRST} bytes")
    return _pass(decode(frame).header.get("pass"))


def _pass(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) > MAX_PASS:
        raise WireError(f"a pass has at most {MAX_PASS} bytes")
    return value


# --- the protocol that is open to all --------------------------------------------------------------------------------


async def serve_door(transport: Transport, door: Door, changed: Callable[[], None]) -> None:
    """Answer whoever knocks, from now on; `transport` is not gated. `changed` is called when somebody tells of an
    invite that was taken back."""

    async def attend(stream: Stream) -> None:
        header = decode(await stream.receive()).header
        try:
            door.admit(stream.remote, _pass(header.get("pass")), Role.USE)
        except AccessError as error:
            await stream.send(encode({"kind": "refused", "reason": str(error)}))
        else:
            if door.revocations.learn(fields.entries(header.get("revoked", []), "revocations", MAX_REVOCATIONS)):
                changed()
            await stream.send(encode({"kind": "welcome", "revoked": list(door.revocations.sealed)}))
        with suppress(StreamClosed):
            await stream.receive()  # it closes when it has heard

    async def bounded(stream: Stream) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(KNOCK_SECONDS):
                await attend(stream)

    await transport.serve(PROTOCOL, bounded)


async def knock(transport: Transport, peer: PeerId, addresses: Sequence[str], door: Door | None) -> bool:
    """Show `peer` our pass, and tell each other which invites were taken back; whether any of these is new to us.
    `transport` is not gated. Raises AccessError when we are turned away, NetworkError when it does not answer or has no
    door."""
    try:
        async with asyncio.timeout(KNOCK_SECONDS):
            stream = await transport.open(peer, PROTOCOL, addresses)
            try:
                shown, revoked = (b"", ()) if door is None else (door.own, door.revocations.sealed)
                await stream.send(encode({"kind": "knock", "pass": shown, "revoked": list(revoked)}))
                header = decode(await stream.receive()).header
            finally:
                stream.close()
    except TimeoutError:
        raise NetworkError(f"peer {peer} did not answer at its door within {KNOCK_SECONDS:g} s") from None
    if header.get("kind") == "refused":
        reason = fields.text(header.get("reason"), "a reason", 256)
        raise AccessError(printable(reason))
    if door is None:
        return False
    return door.revocations.learn(fields.entries(header.get("revoked", []), "revocations", MAX_REVOCATIONS))
