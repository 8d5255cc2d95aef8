"""The executor process (`peers.executor_launcher`): computes for the network process at the other end of a socket.

Settings come in, then READY goes out or FAILED, then frames go both ways (`peers.pipe`). One thread reads, computes,
writes, and sleeps in the socket when nothing is to do: a second one to read would cost every step a wake-up. What comes
while it computes waits in the network process. The process ends with its socket, and on Linux with its parent.
"""

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace

import torch

from peers.device_use import DeviceGauge
from peers.engine import Engine
from peers.executor_settings import ExecutorSettings, ExecutorStats
from peers.heap import Heap
from peers.inlet import Inlet, SocketEnded
from peers.loading import Loaded, load
from peers.pipe import Kind, Packet, pack
from peers.span_memory import available_memory, check_memory, resident_bytes, used_memory
from peers.training.desk import TrainingDesk
from peers.training.trainee import Trainee
from swarm.errors import SwarmError

__all__ = ["run"]

logger = logging.getLogger(__name__)

STATS_SECONDS = 1.0
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # from <linux/prctl.h>


class Executor:
    def __init__(self, connection: socket.socket, inlet: Inlet, engine: Engine, device: DeviceGauge) -> None:
        self._connection = connection
        self._inlet = inlet
        self._engine = engine
        self._device = device
        self._heap = Heap(time.monotonic)
        self._said_at = 0.0  # when stats were last sent
        self._said_sessions = -1

    def serve(self) -> None:
        """Until the socket ends; raises SocketEnded then."""
        worked = False
        while True:
            for packet in self._inlet.take_all(0.0 if worked else self._nap()):
                self._take(packet)
            self._gather()
            worked = self._engine.step()
            if worked:
                self._heap.used()
            self._send()
            self._tell()

    def _nap(self) -> float:
        """Seconds to wait for something to come in."""
        rest = self._engine.rest
        return STATS_SECONDS if rest is None else min(rest, STATS_SECONDS)

    def _gather(self) -> None:
        """Wait for those who should be in the next batch, too."""
        since = time.monotonic()
        while (seconds := self._engine.patience(since)) > 0:
            for packet in self._inlet.take_all(seconds):
                self._take(packet)

    def _send(self) -> None:
        """All at once: frames of one batch that travel together can be in one batch at the next hop."""
        packets = [pack(Kind.FRAME, frame, peer) for peer, frame in self._engine.outgoing()]
        if packets:
            self._connection.sendall(b"".join(packets))

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
            self._heap.look()
        stats = ExecutorStats(
            engine=self._engine.stats(), rss=resident_bytes(), pid=os.getpid(), device=self._device.read()
        )
        self._connection.sendall(pack(Kind.STATS, stats.to_json()))
        self._said_at, self._said_sessions = now, stats.engine.sessions


def run(connection: socket.socket) -> None:
    """This process, until the socket ends."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="executor %(process)d: %(levelname)s %(message)s", force=True)
    inlet = Inlet(connection)
    with suppress(SocketEnded, BrokenPipeError, ConnectionResetError):  # the network process is gone
        _work(connection, inlet)


def _work(connection: socket.socket, inlet: Inlet) -> None:
    settings = _settings(inlet)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        loaded = load(settings)
    except SwarmError as error:
        failed = {"class": type(error).__name__, "message": str(error)}
        connection.sendall(pack(Kind.FAILED, json.dumps(failed).encode()))
        return
    limits = settings.limits
    spare = max(1, _free(loaded, settings) // 12)
    engine = Engine(
        loaded.span,
        model=loaded.checkpoint.digest,
        max_positions=loaded.checkpoint.max_positions,
        outbox_tokens=loaded.outbox_tokens,
        limits=replace(
            limits,
            total_adapter_bytes=min(limits.total_adapter_bytes, spare),
            fitted_bytes=min(limits.fitted_bytes, 2 * spare),
        ),
        training=_training_desk(loaded, settings),
        hosted=loaded.hosted,
        clock=time.monotonic,
    )
    connection.sendall(pack(Kind.READY, loaded.ready(os.getpid(), settings).to_json()))
    Executor(connection, inlet, engine, DeviceGauge(torch.device(settings.device))).serve()


def _training_desk(loaded: Loaded, settings: ExecutorSettings) -> TrainingDesk:
    """Its layers are read when somebody first wants to train, beside those that generate."""
    span, checkpoint, free = loaded.span, loaded.checkpoint, _free(loaded, settings)

    def load_trainee() -> Trainee:
        check_memory(checkpoint, span.blocks, span.dtype, _free(loaded, settings))
        return Trainee.load(checkpoint, span.blocks, dtype=span.dtype, device=span.device)

    return TrainingDesk(
        load_trainee,
        model=checkpoint.digest,
        blocks=span.blocks,
        limits=replace(settings.training, kept_bytes=max(0, min(settings.training.kept_bytes, free // 4))),
        clock=time.monotonic,
    )


def _free(loaded: Loaded, settings: ExecutorSettings) -> int:
    """Bytes of memory that nobody uses yet, and this peer may."""
    spare = available_memory(loaded.span.device)
    return spare if settings.max_memory is None else min(spare, settings.max_memory - used_memory(loaded.span.device))


def die_with_parent() -> None:
    """On Linux the kernel ends this process with its parent; elsewhere the socket's end has to do. Names it, too."""
    if sys.platform == "linux":
        parent, libc = os.getppid(), ctypes.CDLL(None)
        libc.prctl(PR_SET_NAME, b"swarm executor")
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)


def _settings(inlet: Inlet) -> ExecutorSettings:
    while True:
        for packet in inlet.take_all(STATS_SECONDS):
            return ExecutorSettings.from_json(packet.content)
