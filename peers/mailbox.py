"""From the thread that reads the socket to the thread that computes: packets in order, a bounded number of bytes."""

import threading
from collections import deque

from peers.pipe import Packet

__all__ = ["Mailbox"]


class Mailbox:
    def __init__(self, max_bytes: int) -> None:
        """A single packet may be larger than `max_bytes`; it then waits until the mailbox is empty."""
        self._max_bytes = max_bytes
        self._packets: deque[Packet] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, packet: Packet) -> None:
        """Blocks while the mailbox is full."""
        size = len(packet.content) + len(packet.peer) + 1
        with self._changed:
            self._changed.wait_for(lambda: not self._packets or self._bytes + size <= self._max_bytes)
            self._packets.append(packet)
            self._bytes += size
            self._changed.notify_all()

    def take_all(self, wait: float) -> list[Packet]:
        """Everything that is there; waits up to `wait` seconds for something to come."""
        with self._changed:
            self._changed.wait_for(lambda: self._packets, wait)
            packets = list(self._packets)
            self._packets.clear()
            self._bytes = 0
            self._changed.notify_all()
        return packets
