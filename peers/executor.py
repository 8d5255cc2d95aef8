"""The executor process: `python -m peers.executor FD` computes for the network process at the other end of socket FD.

Settings come in, then READY goes out or FAILED, then frames go both ways (`peers.pipe`). One thread reads, the main
thread computes and writes, and sleeps when nothing is to do. The process ends when the socket does: it never outlives
its parent.
"""

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

import torch

from peers.engine import Engine
from peers.executor_settings import ExecutorSettings, ExecutorStats
from peers.loading import load
from peers.mailbox import Mailbox
from peers.pipe import Kind, Packet, PacketReader, pack
from peers.span_memory import resident_bytes
from swarm.errors import SwarmError

__all__ = ["main"]

logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes of one read
MAILBOX_BYTES = 128 << 20
STATS_SECONDS = 1.0
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # from <linux/prctl.h>


class Executor:
    def __init__(self, connection: socket.socket, mailbox: Mailbox, engine: Engine) -> None:
        self._connection = connection
        self._mailbox = mailbox
        self._engine = engine
        self._said_at = 0.0  # when stats were last sent
        self._said_sessions = -1

    def serve(self) -> None:
        """Until the process ends."""
        worked = False
        while True:
            for packet in self._mailbox.take_all(0.0 if worked else STATS_SECONDS):
                self._take(packet)
            worked = self._engine.step()
            for peer, frame in self._engine.outgoing():
                self._connection.sendall(pack(Kind.FRAME, frame, peer))
            self._tell()

    def _take(self, packet: Packet) -> None:
        if packet.kind is Kind.FRAME:
            self._engine.receive(packet.peer, packet.content)
        elif packet.kind is Kind.GONE:
            self._engine.gone(packet.peer)

    def _tell(self) -> None:
        """Stats, when sessions have come or gone, or when it is time; idle sessions are looked for then, too."""
        now = time.monotonic()
        due = now >= self._said_at + STATS_SECONDS
        if not due and self._engine.session_count == self._said_sessions:
            return
        if due:
            self._engine.expire()
        stats = ExecutorStats(engine=self._engine.stats(), rss=resident_bytes(), pid=os.getpid())
        self._connection.sendall(pack(Kind.STATS, stats.to_json()))
        self._said_at, self._said_sessions = now, stats.engine.sessions


def main() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides what it means
    logging.basicConfig(level=logging.INFO, format="executor %(process)d: %(levelname)s %(message)s")
    connection = socket.socket(fileno=int(sys.argv[1]))
    mailbox = Mailbox(MAILBOX_BYTES)
    threading.Thread(target=_read, args=(connection, mailbox), name="reader", daemon=True).start()
    settings = _settings(mailbox)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        loaded = load(settings)
    except SwarmError as error:
        failed = {"class": type(error).__name__, "message": str(error)}
        connection.sendall(pack(Kind.FAILED, json.dumps(failed).encode()))
        return
    engine = Engine(
        loaded.span,
        model=loaded.checkpoint.digest,
        max_positions=loaded.checkpoint.max_positions,
        outbox_tokens=loaded.outbox_tokens,
        limits=settings.limits,
        clock=time.monotonic,
    )
    connection.sendall(pack(Kind.READY, loaded.ready(os.getpid(), settings).to_json()))
    with suppress(BrokenPipeError, ConnectionResetError):  # the network process is gone
        Executor(connection, mailbox, engine).serve()


def die_with_parent() -> None:
    """On Linux the kernel ends this process with its parent; elsewhere the socket's end has to do. Names it, too."""
    if sys.platform == "linux":
        parent, libc = os.getppid(), ctypes.CDLL(None)
        libc.prctl(PR_SET_NAME, b"swarm executor")
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)


def _settings(mailbox: Mailbox) -> ExecutorSettings:
    while True:
        for packet in mailbox.take_all(STATS_SECONDS):
            return ExecutorSettings.from_json(packet.content)


def _read(connection: socket.socket, mailbox: Mailbox) -> None:
    """The reader thread. When the socket ends, so does the process, whatever the main thread computes just then."""
    reader = PacketReader()
    try:
        while data := connection.recv(CHUNK):
            for packet in reader.feed(data):
                mailbox.put(packet)
    except OSError as error:
        logger.warning("the socket of the network process failed: %s", error)
    except SwarmError:
        logger.exception("the network process sent what can't be read")
    os._exit(0)


if __name__ == "__main__":
    main()
