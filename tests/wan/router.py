"""The router: a process that holds the namespaces and carries packets between them.

It takes orders as JSON objects, a line each, on its standard input, and answers each with one on its standard output.
When its input ends, so does it, and with it the namespaces and whoever is still in them. A SIGKILL of whoever
started it ends its input too.
"""

import heapq
import json
import os
import random
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.wan.gate import Flow, Gate
from tests.wan.link import Line, Link
from tests.wan.namespace import kill_inside, new_host

__all__ = ["Router"]

LARGEST = 65_536  # bytes of a packet
BURST = 64  # packets of one host, before others have their turn
MAX_HELD = 256 * 2**20  # bytes under way
Order = dict[str, Any]


@dataclass(slots=True)
class _Host:
    name: str
    namespace: int
    device: int
    up: Line
    down: Line
    gate: Gate | None


@dataclass(order=True, slots=True)
class _Packet:
    due: float
    number: int
    data: bytes = field(compare=False)
    source: _Host = field(compare=False)
    target: _Host = field(compare=False)
    way: Sequence[Line] = field(compare=False)  # still to go through


class Router:
    def __init__(self, mask: str, mtu: int, seed: int) -> None:
        self._mask, self._mtu = mask, mtu
        self._dice = random.Random(seed)
        self._hosts: dict[bytes, _Host] = {}  # by address
        self._default = Link()
        self._links: dict[tuple[str, str], Link] = {}
        self._lines: dict[tuple[str, str], Line] = {}
        self._group: dict[str, int] = {}  # of hosts in a partition
        self._ahead: list[_Packet] = []
        self._held = 0  # bytes of them
        self._number = 0
        self._counts: Counter[str] = Counter()

    # --- orders -------------------------------------------------------------------------------------------------

    def obey(self, order: Order) -> Order:
        """Do what `order["do"]` says; the answer. Raises OSError, ValueError."""
        orders: dict[str, Callable[[Order], Order]] = {
            "host": self._add_host,
            "link": self._set_link,
            "partition": self._partition,
            "counts": lambda _: dict(self._counts),
        }
        return orders[order["do"]](order)

    def _add_host(self, order: Order) -> Order:
        name, address = order["name"], order["address"]
        namespace, device = new_host(address, self._mask, self._mtu)
        up, down = (Line(Link(**order[way]), self._dice) for way in ("up", "down"))
        host = _Host(name, namespace, device, up, down, Gate() if order["nat"] else None)
        self._hosts[socket.inet_aton(address)] = host
        return {"namespace": namespace}

    def _set_link(self, order: Order) -> Order:
        link, between = Link(**order["link"]), order["between"]
        if between is None:
            self._default = link
            self._lines = {pair: line for pair, line in self._lines.items() if pair in self._links}
        else:
            pair = (between[0], between[1])
            self._links[pair] = link
            self._lines.pop(pair, None)
        return {}

    def _partition(self, order: Order) -> Order:
        self._group = {name: number for number, group in enumerate(order["groups"]) for name in group}
        for packet in [packet for packet in self._ahead if self._parted(packet.source, packet.target)]:
            self._ahead.remove(packet)
            self._held -= len(packet.data)
            self._counts["parted"] += 1
        heapq.heapify(self._ahead)
        return {}

    @property
    def namespaces(self) -> list[int]:
        return [host.namespace for host in self._hosts.values()]

    # --- packets ------------------------------------------------------------------------------------------------

    def turn(self, orders: int) -> bool:
        """Wait for packets and deliver what is due; whether there is something to read on `orders`."""
        wait = max(0.0, self._ahead[0].due - time.monotonic()) if self._ahead else None
        devices = {host.device: host for host in self._hosts.values()}
        ready = select.select([orders, *devices], [], [], wait)[0]
        for one in ready:
            if one != orders:
                self._read(devices[one])
        self._move()
        return orders in ready

    def _read(self, source: _Host) -> None:
        now = time.monotonic()
        for _ in range(BURST):
            try:
                data = os.read(source.device, LARGEST)
            except BlockingIOError:
                return
            target = self._hosts.get(data[16:20])
            if len(data) < 20 or data[0] >> 4 != 4 or target is None:
                continue  # IPv6, or to nobody
            self._counts["sent"] += 1
            if source.gate is not None:
                source.gate.leave(Flow.of(data), now)
            if self._parted(source, target):
                self._counts["parted"] += 1
            elif self._held + len(data) > MAX_HELD:
                self._counts["lost"] += 1
            else:
                self._held += len(data)
                way = (source.up, self._line(source, target), target.down)
                self._put(now, _Packet(now, 0, data, source, target, way))

    def _put(self, now: float, packet: _Packet) -> None:
        """Into the next line of its way."""
        due = packet.way[0].take(now, len(packet.data))
        if due is None:
            self._held -= len(packet.data)
            self._counts["lost"] += 1
            return
        self._number += 1
        packet.due, packet.number, packet.way = due, self._number, packet.way[1:]
        heapq.heappush(self._ahead, packet)

    def _move(self) -> None:
        """Whatever has come out of a line by now goes into the next, or to its host."""
        now = time.monotonic()
        while self._ahead and self._ahead[0].due <= now:
            packet = heapq.heappop(self._ahead)
            if packet.way:
                self._put(packet.due, packet)
            else:
                self._held -= len(packet.data)
                self._counts[self._deliver(packet, now)] += 1

    def _deliver(self, packet: _Packet, now: float) -> str:
        """What has become of it."""
        gate = packet.target.gate
        if gate is not None and not gate.admits(Flow.of(packet.data), now):
            return "refused"
        try:
            os.write(packet.target.device, packet.data)
        except OSError:  # its host has no room, or has taken the device down
            return "lost"
        return "delivered"

    def _line(self, source: _Host, target: _Host) -> Line:
        pair = (source.name, target.name)
        if pair not in self._lines:
            self._lines[pair] = Line(self._links.get(pair, self._default), self._dice)
        return self._lines[pair]

    def _parted(self, source: _Host, target: _Host) -> bool:
        one, other = self._group.get(source.name), self._group.get(target.name)
        return one is not None and other is not None and one != other


def _serve(router: Router) -> None:
    """Until the standard input ends."""
    orders, text = sys.stdin.fileno(), b""
    while True:
        if not router.turn(orders):
            continue
        more = os.read(orders, LARGEST)
        if not more:
            return
        *lines, text = (text + more).split(b"\n")
        for line in lines:
            try:
                answer = router.obey(json.loads(line))
            except (OSError, ValueError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


def _main(mask: str, mtu: str, seed: str) -> None:
    router, parent = Router(mask, int(mtu), int(seed)), os.getppid()
    try:
        _serve(router)
    finally:
        kill_inside(router.namespaces, spared={os.getpid(), parent})


if __name__ == "__main__":
    _main(*sys.argv[1:])
