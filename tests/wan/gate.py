"""What a host behind NAT lets in: answers to what it has sent itself, and nothing else.

Addresses stay as they are: for those outside, a host that can't be dialled is what matters.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

__all__ = ["Flow", "Gate"]

KEPT_FLOWS = 65_536
IDLE_SECONDS = 300.0  # after which a flow is forgotten
WITH_PORTS = (6, 17)  # TCP and UDP
FRAGMENT = 0x1FFF  # bits that say where in its datagram a fragment begins


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets of one conversation in one direction; ports are 0 where a protocol has none."""

    protocol: int
    source: bytes
    target: bytes
    source_port: int = 0
    target_port: int = 0

    @classmethod
    def of(cls, packet: bytes) -> Self:
        """The flow of an IPv4 packet of at least 20 bytes."""
        start = 4 * (packet[0] & 0xF)
        later = int.from_bytes(packet[6:8], "big") & FRAGMENT
        ports = packet[start : start + 4] if packet[9] in WITH_PORTS and not later else b""
        return cls(
            packet[9],
            packet[12:16],
            packet[16:20],
            int.from_bytes(ports[:2], "big"),
            int.from_bytes(ports[2:], "big"),
        )

    @property
    def back(self) -> "Flow":
        return Flow(self.protocol, self.target, self.source, self.target_port, self.source_port)


class Gate:
    """Remembers the latest flows that went out."""

    def __init__(self) -> None:
        self._out: OrderedDict[Flow, float] = OrderedDict()  # when each was last in use, oldest first

    def leave(self, flow: Flow, now: float) -> None:
        self._out[flow] = now
        self._out.move_to_end(flow)
        if len(self._out) > KEPT_FLOWS:
            self._out.popitem(last=False)

    def admits(self, flow: Flow, now: float) -> bool:
        """Whether a packet of `flow` from outside may come in."""
        used = self._out.get(flow.back)
        if used is None or now - used > IDLE_SECONDS:
            return False
        self.leave(flow.back, now)
        return True
