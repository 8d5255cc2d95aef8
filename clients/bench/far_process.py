"""Puts TCP servers on this machine far away: `python -m clients.bench.far_process` is a line in front of each.

One line of JSON comes in, `{"targets": [port, ...], "delay": seconds, "bandwidth": bytes per second}`, and one goes
out, `{"ports": [...]}`: whoever connects to one of these talks to its target over the line. What the target dials by
itself goes over the line of whom it dials. Each further line, `{"line": index, "dialled_from": [port, ...]}`, cuts all
connections of one line, and those of the others that come from these ports; `{"cut": how many}` answers it, and new
connections are taken at once. A process of its own, so that nobody's computing delays what passes here; it ends with
its standard input, and says last how exact it was. Connecting itself takes no time.
"""

import asyncio
import contextlib
import json
import selectors
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from clients.bench.way import Lateness, Pacer, Way

__all__ = ["Line"]

CHUNK = 64 << 10  # bytes
HOST = "127.0.0.1"


@dataclass
class Line:
    """In front of one server. `up` is to it, `down` from it; all its connections share these."""

    target: int
    delay: float
    up: Pacer
    down: Pacer
    lateness: Lateness
    bytes: int = 0
    connections: int = field(default=0)
    open: dict[tuple[StreamWriter, StreamWriter], int] = field(default_factory=dict)  # the port dialled from

    def cut(self, dialled_from: Collection[int] | None = None) -> int:
        """Break the connections that were dialled from these ports, or all, as when a machine is gone; how many."""
        hit = [ends for ends, port in self.open.items() if dialled_from is None or port in dialled_from]
        for ends in hit:
            del self.open[ends]
            for writer in ends:
                writer.transport.abort()
        return len(hit)

    async def attend(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, to its end."""
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self.target)
        except OSError:  # it is not there; whoever dialled sees the end
            writer.close()
            return
        ends = (writer, far_writer)
        self.open[ends] = writer.get_extra_info("peername")[1]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, far_writer, self.up))
                group.create_task(self._carry(far_reader, writer, self.down))
        finally:
            self.open.pop(ends, None)
            writer.close()
            far_writer.close()

    async def _carry(self, reader: StreamReader, writer: StreamWriter, pacer: Pacer) -> None:
        """One direction, until it ends; then the other side is closed, and with it the other direction."""
        way = Way(self.delay, pacer, self.lateness)
        taking = asyncio.create_task(_take(reader, way))
        try:
            while data := await way.get():
                self.bytes += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other side has closed
        finally:
            taking.cancel()
            writer.close()


async def _take(reader: StreamReader, way: Way) -> None:
    data = b"-"
    while data:
        try:
            data = await reader.read(CHUNK)
        except OSError:
            data = b""
        await way.put(data)


async def serve(settings: dict[str, Any]) -> None:
    """Until standard input ends."""
    lateness = Lateness()
    lines = [
        Line(target, settings["delay"], Pacer(settings["bandwidth"]), Pacer(settings["bandwidth"]), lateness)
        for target in settings["targets"]
    ]
    async with contextlib.AsyncExitStack() as stack:
        ports = []
        for line in lines:
            server = await asyncio.start_server(line.attend, HOST, 0)
            stack.callback(server.close)
            ports.append(server.sockets[0].getsockname()[1])
        _say({"ports": ports})
        while asked := await asyncio.to_thread(sys.stdin.readline):
            _say({"cut": _cut(lines, **json.loads(asked))})
        connections = sum(line.connections for line in lines)
        said = {"late": lateness.mean, "latest": lateness.worst, "connections": connections}
        _say({**said, "bytes": sum(line.bytes for line in lines)})


def _say(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _cut(lines: Sequence[Line], line: int, dialled_from: Collection[int]) -> int:
    return sum(one.cut(None if index == line else dialled_from) for index, one in enumerate(lines))


def _exact_loop() -> asyncio.AbstractEventLoop:
    """A loop whose timers are exact to some 50 µs; epoll's, and uvloop's, count whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_exact_loop) as runner:
        runner.run(serve(json.loads(sys.stdin.readline())))
