"""What the network process has sent to an executor, as packets."""

import select
import socket

from peers.pipe import Packet, PacketReader

__all__ = ["Inlet", "SocketEnded"]

CHUNK = 1 << 20  # bytes of one read
AT_ONCE = 64 << 20  # bytes after which what has been read is handed on


class SocketEnded(Exception):
    """The other side of the socket is gone."""


class Inlet:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = PacketReader()
        self._poll = select.poll()  # not `select`, whose descriptors end at 1024: ours has the number it had elsewhere
        self._poll.register(connection, select.POLLIN)

    def take_all(self, wait: float) -> list[Packet]:
        """Everything that is there; waits up to `wait` seconds for something to come. Raises SocketEnded, WireError."""
        packets: list[Packet] = []
        readable = self._poll.poll(1000 * wait)
        size = 0
        while readable and size < AT_ONCE:
            try:
                data = self._connection.recv(CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not data:
                raise SocketEnded
            size += len(data)
            packets.extend(self._reader.feed(data))
        return packets
