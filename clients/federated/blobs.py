"""Bytes named by their digest, kept for others and fetched from them: whoever has them may send them."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clients.federated.frames import PIECE, content, digest_of
from clients.federated.links import Links
from swarm import fields
from swarm.ids import PeerId

__all__ = ["Blobs"]

PROGRESS = 15.0  # seconds without a piece, after which somebody else is asked
SENDINGS = 4  # at once to one member
MAX_BYTES = 1 << 40


@dataclass(slots=True)
class _Transfer:
    size: int
    data: bytearray = field(default_factory=bytearray)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    refused: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Blobs:
    """`say` makes a frame of this member."""

    def __init__(self, links: Links, say: Callable[..., bytes]) -> None:
        self.kept: dict[bytes, bytes] = {}
        self._links = links
        self._say = say
        self._transfers: dict[tuple[PeerId, bytes], _Transfer] = {}
        self._sending: dict[asyncio.Task[None], PeerId] = {}

    @property
    def busy(self) -> bool:
        return bool(self._sending)

    def retain(self, digests: Iterable[bytes]) -> None:
        """Forget all others."""
        wanted = set(digests)
        self.kept = {digest: data for digest, data in self.kept.items() if digest in wanted}

    async def fetch(self, digest: bytes, size: int, sources: Iterable[PeerId]) -> bytes | None:
        """Exactly these bytes, from the first source that has them; None where none does."""
        for peer in sources:
            if digest in self.kept:
                break
            data = await self._from(peer, digest, size)
            if data is not None:
                self.kept[digest] = data
        return self.kept.get(digest)

    def wanted(self, peer: PeerId, said: Mapping[str, Any]) -> None:
        digest = digest_of(said.get("digest"))
        if sum(to == peer for to in self._sending.values()) < SENDINGS:
            task = asyncio.create_task(self._send(peer, digest))
            self._sending[task] = peer
            task.add_done_callback(self._sending.pop)

    def arrived(self, peer: PeerId, said: Mapping[str, Any], body: memoryview) -> None:
        transfer = self._transfers.get((peer, digest_of(said.get("digest"))))
        if transfer is None:
            return  # an answer to what was given up meanwhile
        total, at = (fields.whole(said.get(name), 0, MAX_BYTES, "a piece") for name in ("total", "at"))
        if total != transfer.size or at != len(transfer.data) or at + len(body) > total or not len(body):
            transfer.refused = True
        else:
            transfer.data += body
        transfer.news.set()

    async def close(self) -> None:
        for task in list(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def _from(self, peer: PeerId, digest: bytes, size: int) -> bytes | None:
        if (under_way := self._transfers.get((peer, digest))) is not None:
            await under_way.ended.wait()  # somebody here asked for the same; it gives up by itself
            return self.kept.get(digest)
        transfer = self._transfers[peer, digest] = _Transfer(size)
        try:
            self._links.post(peer, self._say(kind="want", digest=digest))
            while len(transfer.data) < size and not transfer.refused and peer in self._links.peers:
                transfer.news.clear()
                async with asyncio.timeout(PROGRESS):
                    await transfer.news.wait()
        except TimeoutError:
            return None
        finally:
            del self._transfers[peer, digest]
            transfer.ended.set()
        return bytes(transfer.data) if content(transfer.data) == digest else None

    def lost(self) -> None:
        """Somebody left: whoever waits for them looks again."""
        for transfer in self._transfers.values():
            transfer.news.set()

    async def _send(self, peer: PeerId, digest: bytes) -> None:
        data = memoryview(self.kept.get(digest, b""))
        if not len(data):
            self._links.post(peer, self._say(kind="piece", digest=digest, at=0, total=0))
        for at in range(0, len(data), PIECE):
            said = {"kind": "piece", "digest": digest, "at": at, "total": len(data)}
            self._links.post(peer, self._say(body=data[at : at + PIECE], **said))
            if not await self._links.drained(peer):
                return
