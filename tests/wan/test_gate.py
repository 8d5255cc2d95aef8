"""Who gets in to a host behind NAT."""

import socket
import struct

from tests.wan.gate import IDLE_SECONDS, KEPT_FLOWS, Flow, Gate

HOME, FRIEND, STRANGER = (socket.inet_aton(f"11.0.0.{last}") for last in (1, 2, 3))
TCP = 6


def packet(source: bytes, target: bytes, ports: tuple[int, int], fragment: int = 0) -> bytes:
    """A header of IPv4 without options, and ports."""
    return struct.pack("!BBHHHBBH4s4sHH", 0x45, 0, 24, 0, fragment, 64, TCP, 0, source, target, *ports)


def test_a_flow_is_read_off_a_packet() -> None:
    assert Flow.of(packet(HOME, FRIEND, (5000, 80))) == Flow(TCP, HOME, FRIEND, 5000, 80)
    assert Flow.of(packet(HOME, FRIEND, (5000, 80), fragment=9)) == Flow(TCP, HOME, FRIEND)
    assert Flow.of(packet(HOME, FRIEND, (5000, 80))[:20]) == Flow(TCP, HOME, FRIEND)


def test_only_answers_come_in() -> None:
    gate = Gate()
    gate.leave(Flow(TCP, HOME, FRIEND, 5000, 80), now=0.0)
    assert gate.admits(Flow(TCP, FRIEND, HOME, 80, 5000), now=1.0)
    assert not gate.admits(Flow(TCP, FRIEND, HOME, 81, 5000), now=1.0)
    assert not gate.admits(Flow(TCP, FRIEND, HOME, 80, 5001), now=1.0)
    assert not gate.admits(Flow(TCP, STRANGER, HOME, 80, 5000), now=1.0)


def test_idle_flow_is_forgotten_and_a_busy_one_is_not() -> None:
    gate, back = Gate(), Flow(TCP, FRIEND, HOME, 80, 5000)
    gate.leave(back.back, now=0.0)
    assert gate.admits(back, now=IDLE_SECONDS)
    assert gate.admits(back, now=2 * IDLE_SECONDS)
    assert not gate.admits(back, now=3 * IDLE_SECONDS + 1)


def test_oldest_flow_makes_room() -> None:
    gate = Gate()
    for port in range(KEPT_FLOWS + 1):
        gate.leave(Flow(TCP, HOME, FRIEND, port, 80), now=0.0)
    assert not gate.admits(Flow(TCP, FRIEND, HOME, 80, 0), now=0.0)
    assert gate.admits(Flow(TCP, FRIEND, HOME, 80, 1), now=0.0)
