"""What goes over the socket between the network process and an executor process.

A packet is `u32 length | u8 kind | u16 peer id length | peer id | content`, little-endian; `length` counts everything
after itself. The content of a FRAME is a frame of the protocol, as it came or as it goes; the peer is who sent it, or
who is to get it. Both sides are ours, so a packet that makes no sense is a fault of the program; it is noticed anyway.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from swarm.errors import WireError
from swarm.ids import PeerId
from swarm.wire import MAX_FRAME

__all__ = ["Kind", "Packet", "PacketReader", "pack"]

HEAD = struct.Struct("<IBH")
LENGTH = struct.Struct("<I")
AFTER_LENGTH = HEAD.size - LENGTH.size
MAX_PEER = 512  # bytes
MAX_PACKET = MAX_FRAME + AFTER_LENGTH + MAX_PEER


class Kind(IntEnum):
    SETTINGS = 1  # to the executor, first of all
    FRAME = 2  # both ways
    GONE = 3  # to the executor: a peer's last stream has ended
    READY = 4  # from the executor, after the settings
    FAILED = 5  # from the executor, in place of READY: an error
    STATS = 6  # from the executor


@dataclass(frozen=True, slots=True)
class Packet:
    kind: Kind
    peer: PeerId
    content: bytes


def pack(kind: Kind, content: bytes = b"", peer: PeerId | str = "") -> bytes:
    name = peer.encode()
    if len(name) > MAX_PEER or len(content) > MAX_FRAME:
        raise WireError(f"a packet of {len(content)} bytes for a peer id of {len(name)} bytes is over the limits")
    return b"".join((HEAD.pack(AFTER_LENGTH + len(name) + len(content), kind, len(name)), name, content))


class PacketReader:
    """Turns received bytes, cut anyhow, into packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Packet]:
        """The packets that `data` completes; exhaust it before the next call. Raises WireError."""
        self._buffer += data
        begin = 0
        while (end := self._end(begin)) is not None:
            yield self._packet(begin, end)
            begin = end
        del self._buffer[:begin]

    def _end(self, begin: int) -> int | None:
        """Where the packet that begins at `begin` ends, None while some of it is missing."""
        if len(self._buffer) < begin + LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._buffer, begin)
        if not AFTER_LENGTH <= length <= MAX_PACKET:
            raise WireError(f"a packet announces {length} bytes")
        end = begin + LENGTH.size + int(length)
        return end if len(self._buffer) >= end else None

    def _packet(self, begin: int, end: int) -> Packet:
        _, kind, length = HEAD.unpack_from(self._buffer, begin)
        at = begin + HEAD.size
        if at + length > end:
            raise WireError(f"a peer id of {length} bytes does not fit its packet")
        view = memoryview(self._buffer)
        try:
            return Packet(Kind(kind), PeerId(bytes(view[at : at + length]).decode()), bytes(view[at + length : end]))
        except ValueError as error:
            raise WireError(f"a packet that makes no sense: {error}") from error
        finally:
            view.release()
