"""The network process's side of an executor: a process that computes, or for tests an engine right here.

Nothing heavy is imported here.
"""

import asyncio
import json
import logging
import os
import socket
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import swarm.errors
from peers.executor_settings import ExecutorReady, ExecutorSettings, ExecutorStats
from peers.forked import Forked
from peers.pipe import Kind, Packet, PacketReader, pack
from peers.stats import EngineStats
from peers.words import read_lines
from swarm.errors import SwarmError, WireError
from swarm.ids import PeerId

__all__ = ["ExecutorLink", "ExecutorLost", "InlineLink", "ProcessLink"]

_log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent  # where `peers` can be imported from
LONGEST_LINE = 16 << 10  # bytes of what an executor prints
LAST_WORDS_SECONDS = 1.0
SERIOUS = ("WARNING", "ERROR", "Error", "Traceback")  # in a line of the executor's
QUEUE_BYTES = 64 << 20  # of what waits on either way between the processes; more waits where it comes from


class ExecutorLost(SwarmError):
    """The executor process has ended, or hangs and was killed. Its sessions are gone."""


class ExecutorLink(Protocol):
    @property
    def stats(self) -> ExecutorStats:
        """The latest that is known."""
        ...

    @abstractmethod
    async def send(self, sender: PeerId, frame: bytes) -> None:
        """Gives the executor a frame that `sender` sent; waits while it is behind. Raises ExecutorLost."""

    @abstractmethod
    async def gone(self, peer: PeerId) -> None:
        """Frees what the peer owns: its last stream has ended. Raises ExecutorLost."""

    @abstractmethod
    async def receive(self) -> tuple[PeerId, bytes]:
        """The next frame to send, and to whom. For one caller at a time; may be cancelled. Raises ExecutorLost."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the executor; safe to repeat."""


# --- a process --------------------------------------------------------------------------------------------------------


class _Wire(asyncio.Protocol):
    """The socket, as packets in order. Reading stops while too much waits to be fetched."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.heard = loop.time()
        self.ended = False
        self.news = asyncio.Event()
        self.stats = ExecutorStats()
        self._loop = loop
        self._reader = PacketReader()
        self._packets: deque[Packet] = deque()
        self._bytes = 0
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.set_write_buffer_limits(high=QUEUE_BYTES)  # what comes while the executor computes waits here

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        try:
            packets = list(self._reader.feed(data))
        except WireError:
            self.close()  # what comes after it cannot be read either
            return
        for packet in packets:
            if packet.kind is Kind.STATS:
                self.stats = ExecutorStats.from_json(packet.content)
            else:
                self._packets.append(packet)
                self._bytes += len(packet.content)
        if self._bytes > QUEUE_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self.news.set()
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def write(self, data: bytes) -> bool:
        """False when the socket has ended."""
        await self._may_write.wait()
        if self.ended or self._transport is None:
            return False
        self._transport.write(data)
        return True

    def take(self) -> Packet | None:
        """The next packet that has arrived."""
        if not self._packets:
            return None
        packet = self._packets.popleft()
        self._bytes -= len(packet.content)
        if self._transport is not None and self._bytes <= QUEUE_BYTES and not self.ended:
            self._transport.resume_reading()
        return packet

    def close(self) -> None:
        self.ended = True
        self.news.set()
        self._may_write.set()
        if self._transport is not None:
            self._transport.abort()


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `start`: until the span is loaded and measured. `silence`: an executor says something about every second
    and after each batch; one that says nothing for so long hangs. `end`: between its socket's end and SIGKILL."""

    start: float = 600.0
    silence: float = 120.0
    end: float = 5.0


class ProcessLink(ExecutorLink):
    """An executor process of its own, `python -m peers.executor_launcher`, over a socket pair; the first may have been
    `forked`."""

    def __init__(
        self, settings: ExecutorSettings, patience: Patience | None = None, *, forked: Forked | None = None
    ) -> None:
        self.settings = settings
        self._patience = patience or Patience()
        self._forked = forked
        self._process: asyncio.subprocess.Process | Forked | None = None
        self._wire: _Wire | None = None
        self._words: asyncio.Task[None] | None = None  # what the process prints, on its way into our log
        self._ready: ExecutorReady | None = None

    @property
    def stats(self) -> ExecutorStats:
        return self._wire.stats if self._wire else ExecutorStats()

    @property
    def ready(self) -> ExecutorReady:
        """What was loaded, and how fast it is. Raises ExecutorLost before it has started."""
        if self._ready is None:
            raise ExecutorLost("the executor has not started")
        return self._ready

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def warm_up(self) -> None:
        """Starts the process, which loads its libraries and no weights until `start`. Raises OSError."""
        await self._spawn()

    async def start(self) -> ExecutorReady:
        """Starts the process and waits until it serves. Raises what loading raises, ModelError say, or ExecutorLost."""
        try:
            async with asyncio.timeout(self._patience.start):
                if self._process is None:
                    await self._spawn()
                await self._write(pack(Kind.SETTINGS, self.settings.to_json()))
                self._ready = await self._first_words()
        except TimeoutError:
            await self.close()
            raise ExecutorLost(f"the executor was not ready within {self._patience.start:.0f} s") from None
        except BaseException:
            await self.close()
            raise
        return self._ready

    async def restart(self) -> None:
        """Ends what is left of the process and starts another. Raises ExecutorLost when it does not come up."""
        await self.close()
        try:
            await self.start()
        except ExecutorLost:
            raise
        except SwarmError as error:
            raise ExecutorLost(f"the executor did not start again: {error}") from error

    async def send(self, sender: PeerId, frame: bytes) -> None:
        await self._write(pack(Kind.FRAME, frame, sender))

    async def gone(self, peer: PeerId) -> None:
        await self._write(pack(Kind.GONE, peer=peer))

    async def receive(self) -> tuple[PeerId, bytes]:
        packet = await self._next()
        return packet.peer, packet.content

    async def close(self) -> None:
        wire, process = self._wire, self._process
        if wire is not None:
            wire.close()  # its socket ends, so it leaves by itself
        if process is not None:
            try:
                async with asyncio.timeout(self._patience.end):
                    await process.wait()
            except TimeoutError:
                pass
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                await self._last_words()
        self._process = None

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        if self._forked is None:
            await self._start_from_scratch()
            return
        self._process, self._forked = self._forked, None
        await self._attend(self._process.connection, await self._process.stdout())

    async def _attend(self, connection: socket.socket, words: asyncio.StreamReader | None) -> None:
        connection.setblocking(False)
        self._words = asyncio.create_task(_log_words(words), name="words of the executor")
        _, self._wire = await asyncio.get_running_loop().create_unix_connection(_Wire, sock=connection)

    async def _start_from_scratch(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "peers.executor_launcher",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                cwd=ROOT,  # first on its import path
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,  # into our log: stdout may be for programs, stderr a dashboard
                stderr=asyncio.subprocess.STDOUT,
            )
            await self._attend(ours, self._process.stdout)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    async def _first_words(self) -> ExecutorReady:
        packet = await self._next(silent=True)
        if packet.kind is Kind.FAILED:
            raise _error(packet.content)
        return ExecutorReady.from_json(packet.content)

    async def _write(self, data: bytes) -> None:
        if self._wire is None or not await self._wire.write(data):
            raise await self._lost()

    async def _next(self, silent: bool = False) -> Packet:
        """The next packet; `silent` when the executor may take its time."""
        wire = self._wire
        if wire is None:
            raise ExecutorLost("the executor has not started")
        while (packet := wire.take()) is None:
            if wire.ended:
                raise await self._lost()
            wire.news.clear()
            try:
                async with asyncio.timeout_at(None if silent else wire.heard + self._patience.silence):
                    await wire.news.wait()
            except TimeoutError:
                if asyncio.get_running_loop().time() >= wire.heard + self._patience.silence:
                    raise self._hangs() from None
        return packet

    def _hangs(self) -> ExecutorLost:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
        return ExecutorLost(f"the executor said nothing for {self._patience.silence:.0f} s, so it was ended")

    async def _last_words(self) -> None:
        """Until all that the process has said is in the log; it has ended, so nothing more comes."""
        if self._words is not None:
            await asyncio.wait([self._words], timeout=LAST_WORDS_SECONDS)
            self._words.cancel()

    async def _lost(self) -> ExecutorLost:
        """Why the socket has ended; waits for the process to end too."""
        process = self._process
        if process is None:
            return ExecutorLost("the executor was closed")
        try:
            async with asyncio.timeout(self._patience.end):
                status = await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            return ExecutorLost("the executor closed its socket and did not end, so it was killed")
        await self._last_words()
        if status < 0:
            why = " (9 may mean that memory ran out)" if status == -9 else ""
            return ExecutorLost(f"the executor was killed by signal {-status}{why}")
        return ExecutorLost(f"the executor ended with exit status {status}; its last words are in the log above")


async def _log_words(words: asyncio.StreamReader | None) -> None:
    if words is not None:
        async for line in read_lines(words, LONGEST_LINE):
            _say(line)


def _say(line: bytes) -> None:
    text = line.decode("utf-8", "replace").rstrip()
    if text:
        level = logging.WARNING if any(word in text for word in SERIOUS) else logging.INFO
        _log.log(level, "%s", text)


def _error(content: bytes) -> SwarmError:
    """An error of the executor as the same class here."""
    values = json.loads(content)
    kind = getattr(swarm.errors, values["class"], None)
    if isinstance(kind, type) and issubclass(kind, SwarmError):
        with suppress(TypeError):  # classes that need more than a sentence
            return kind(values["message"])
    return ExecutorLost(f"the executor failed to start: {values['class']}: {values['message']}")


# --- right here -------------------------------------------------------------------------------------------------------


class InlineEngine(Protocol):
    """What an InlineLink needs of `peers.engine.Engine`."""

    def receive(self, sender: PeerId, frame: bytes) -> None: ...
    def gone(self, peer: PeerId) -> None: ...
    def step(self) -> bool: ...
    def outgoing(self) -> Iterable[tuple[PeerId, bytes]]: ...
    def expire(self) -> None: ...
    def stats(self) -> EngineStats: ...
    @property
    def rest(self) -> float | None: ...


class InlineLink(ExecutorLink):
    """An engine in this process, for tests on the twins: `receive` runs it, so its turns are where the loop's are.

    `step_seconds`: how long a turn takes on the loop's clock, or who tells. `kill` does what a crash of the
    process would do.
    """

    def __init__(
        self,
        make_engine: Callable[[], InlineEngine],
        *,
        step_seconds: float | Callable[[], float] = 0.0,
        expire_seconds: float = 1.0,
    ) -> None:
        self._make_engine = make_engine
        self._engine: InlineEngine | None = make_engine()
        self.step_seconds = step_seconds
        self._expire_seconds = expire_seconds
        self._frames: deque[tuple[PeerId, bytes]] = deque()
        self._news = asyncio.Event()

    @property
    def stats(self) -> ExecutorStats:
        if self._engine is None:
            return ExecutorStats()
        return ExecutorStats(engine=self._engine.stats(), rss=0, pid=os.getpid())

    async def send(self, sender: PeerId, frame: bytes) -> None:
        self._live().receive(sender, frame)
        self._news.set()

    async def gone(self, peer: PeerId) -> None:
        self._live().gone(peer)
        self._news.set()

    async def receive(self) -> tuple[PeerId, bytes]:
        while not self._frames:
            self._news.clear()
            engine = self._live()
            worked = engine.step()
            frames = engine.outgoing()
            try:
                if worked:
                    took = self.step_seconds
                    await asyncio.sleep(took() if callable(took) else took)
            finally:
                if engine is self._engine:  # else it was killed meanwhile, and says nothing any more
                    self._frames.extend(frames)
            if not worked and not self._frames:
                await self._rest(engine)
        return self._frames.popleft()

    async def restart(self) -> None:
        """A new engine, which knows no session."""
        self._engine = self._make_engine()
        self._frames.clear()
        self._news.set()

    def kill(self) -> None:
        """From now on everything raises ExecutorLost, until `restart`."""
        self._engine = None
        self._frames.clear()
        self._news.set()

    async def close(self) -> None:
        self.kill()

    async def _rest(self, engine: InlineEngine) -> None:
        """Until something comes in, or sessions may have been idle for too long."""
        try:
            rest = engine.rest
            async with asyncio.timeout(self._expire_seconds if rest is None else min(rest, self._expire_seconds)):
                await self._news.wait()
        except TimeoutError:
            engine.expire()

    def _live(self) -> InlineEngine:
        if self._engine is None:
            raise ExecutorLost("the executor was killed")
        return self._engine
