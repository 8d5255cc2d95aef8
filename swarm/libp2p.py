"""The real network: libp2p, through the daemon (p2pd) that hivemind brings and starts as a child process.

Every stream is a unix socket to the daemon, which carries our frames as they are. The daemon has a private folder for
its sockets; when it dies, every call here fails with NetworkError at once; when this process dies it ends by itself.
"""

import asyncio
import ipaddress
import logging
import select
import sys
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import DaemonConnector
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.logging import use_hivemind_log_handler

from swarm import daemon_launcher
from swarm.addresses import announced, cannot_listen, check_free, listen_address, packed, peer_of
from swarm.door import Door, GatedTransport
from swarm.errors import NetworkError, StreamClosed, SwarmError, Unreachable, WireError
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.scratch import Scratch
from swarm.transport import Handler, Stream, Transport, handle
from swarm.wire import TOTAL, checked_total

__all__ = ["Libp2pHost", "Libp2pTransport"]

T = TypeVar("T")

# hivemind prints to stderr on its own. What matters of it comes out of here as errors; whoever wants the rest to debug
# sets `logging.getLogger("hivemind").propagate = True`.
use_hivemind_log_handler("nowhere")
logging.getLogger("hivemind").addHandler(logging.NullHandler())
logging.getLogger("hivemind").propagate = False

_CHUNK = 256 << 10  # bytes; larger frames are written in such parts, so that little of them is buffered twice
_LINGER = 5.0  # seconds that the other side gets to take what was sent before a stream was closed
_SEEN_TIMEOUT = 5.0  # for the daemon to say whom it is connected to
_CLOSE_TIMEOUT = 5.0  # seconds that the daemon gets to end when asked to
# A relay is chosen among those that are given, not searched for, which takes minutes; and streams through it may last.
_RELAYING = ("-relayDiscovery=0", "-relayTimeLimit=24h")
_DAEMON_GONE = "the libp2p daemon of this process has ended; start the process again"


class Libp2pHost:
    """One peer's presence on libp2p: the daemon, and the transport over it. Made by `start`, ended by `close`."""

    def __init__(
        self,
        p2p: P2P,
        scratch: Scratch,
        peer_id: PeerId,
        *,
        client: bool,
        relayed: bool,
        also: Sequence[str],
        door: Door | None,
        open_timeout: float,
        max_streams: int,
        max_streams_each: int,
    ) -> None:
        """`relayed`: whether others reach it through relays; `also`: addresses to tell them besides its own; `door`: of
        a private swarm."""
        self.p2p = p2p
        self.peer_id = peer_id
        self.client = client
        self.relayed = relayed
        self.also = tuple(f"{address}/p2p/{peer_id}" for address in also)
        self._scratch = scratch
        self._daemon_end = asyncio.create_task(p2p._child.wait(), name="p2pd")
        self.door = door
        self.open_transport = Libp2pTransport(
            self, open_timeout=open_timeout, max_streams=max_streams, max_streams_each=max_streams_each
        )
        self.transport: Transport = self.open_transport if door is None else GatedTransport(self.open_transport, door)

    @classmethod
    async def start(
        cls,
        identity: Identity,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        announce: Sequence[str] = (),
        initial_peers: Sequence[str] = (),
        also: Sequence[str] = (),
        relays: Sequence[str] = (),
        client: bool = False,
        door: Door | None = None,
        startup_timeout: float = 20.0,
        open_timeout: float = 5.0,
        max_streams: int = 4096,
        max_streams_each: int = 32,
    ) -> Self:
        """Join libp2p as `identity`, listening on `host`:`port` (0: any free one) over TCP; a `client` does not listen.

        `announce`: multiaddresses to tell others instead; `also`: to tell them besides. `relays`: multiaddresses of
        peers through which others reach us, who can't be dialled; without any, we are one that can, and relay for
        others. `initial_peers`: multiaddresses of whom to connect to first, of which one has to answer.
        `door`: of the private swarm that it is for: `transport` is for its members alone then, `open_transport` for
        all.
        `open_timeout`: seconds for dialling a peer. `max_streams`: streams that others may have open to us at once,
        `max_streams_each` of them one peer.
        Raises UsageError for addresses that are none, NetworkError for what goes wrong."""
        for address in initial_peers:
            peer_of(address)
        listen = listen_address(host, port)
        if not client:
            check_free(host, port)
        loopback = ipaddress.ip_address(host).is_loopback
        options: dict[str, Any] = {
            "announce_maddrs": [announced(address) for address in announce] or None,
            "auto_nat": not loopback,
            "check_if_identity_free": False,  # it would start a second daemon, and understands RSA alone
            "dht_mode": "client" if client or relays else "server",
            # what libp2p would find out by itself takes minutes, and streams through whoever is in doubt end at 128 KiB
            "force_reachability": "private" if relays else None if client else "public",
            "host_maddrs": [] if client else [listen],
            "initial_peers": list(initial_peers),
            "nat_port_map": not (loopback or client),
            "no_listen": client,
            "startup_timeout": startup_timeout,
            "trusted_relays": list(relays) or None,
            "use_auto_relay": bool(relays),
        }
        scratch = Scratch()
        try:
            with identity.file() as path:
                p2p = await _start_daemon(scratch, identity_path=str(path), **options)
        except BaseException as error:
            scratch.close()
            if isinstance(error, OSError | EOFError | P2PDaemonError | ValueError):
                raise _start_error(str(error), f"{host}:{port}", initial_peers) from error
            raise
        return cls(
            p2p,
            scratch,
            identity.peer_id,
            client=client,
            relayed=bool(relays),
            also=also,
            door=door,
            open_timeout=open_timeout,
            max_streams=max_streams,
            max_streams_each=max_streams_each,
        )

    @property
    def alive(self) -> bool:
        return not self._daemon_end.done()

    async def ended(self) -> None:
        """Return when the daemon ends, on purpose or not."""
        await asyncio.shield(self._daemon_end)

    def check_alive(self) -> None:
        """Raises NetworkError when the daemon is gone."""
        if not self.alive:
            raise NetworkError(_DAEMON_GONE)

    async def run(self, call: Awaitable[T], limit: float, what: str) -> T:
        """`call`'s result. Raises NetworkError as soon as the daemon dies, or after `limit` seconds."""
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait({task, self._daemon_end}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self.check_alive()
            raise NetworkError(f"{what} took longer than {limit:g} s")
        finally:
            task.cancel()

    async def seen_at(self, peer: PeerId) -> tuple[str, ...]:
        """The multiaddresses of the connections with `peer`, which has one. Raises NetworkError."""
        known = await self.run(self.p2p.list_peers(), _SEEN_TIMEOUT, "asking for connections")
        return tuple(str(address) for one in known if one.peer_id.to_base58() == peer for address in one.addrs)

    async def close(self) -> None:
        """End every stream, the daemon, and its sockets; safe to repeat."""
        await self.open_transport.disconnect()
        self.p2p._terminate()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await asyncio.shield(self._daemon_end)
        except TimeoutError:
            self.p2p._child.kill()
            await self._daemon_end
        finally:
            self._scratch.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Libp2pTransport(Transport):
    """Made by `Libp2pHost.start`, as `host.open_transport`."""

    def __init__(self, host: Libp2pHost, *, open_timeout: float, max_streams: int, max_streams_each: int) -> None:
        self.peer_id = host.peer_id
        self._host = host
        self._open_timeout = open_timeout
        self._max_streams = max_streams
        self._max_streams_each = max_streams_each
        self._accepted: Counter[PeerId] = Counter()  # streams that are served now
        self._handlers: dict[str, Handler] = {}
        self._streams: set[Libp2pStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def open(self, peer: PeerId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        self._check_open()
        try:
            async with asyncio.timeout(self._open_timeout):
                target = PeerID.from_base58(peer)
                if addresses:
                    await self._connect(peer, target, addresses)
                reader, writer = await self._open(target, protocol)
        except TimeoutError:
            raise Unreachable(f"peer {peer} did not answer within {self._open_timeout:g} s") from None
        except (EOFError, OSError) as error:
            raise NetworkError(_DAEMON_GONE) from error
        except (P2PDaemonError, ValueError) as error:
            raise Unreachable(f"peer {peer} can't be reached for {protocol}: {_reason(error)}") from error
        return self._keep(Libp2pStream(peer, reader, writer))

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """A connection to `peer`, whatever it serves. Raises Unreachable."""
        self._check_open()
        try:
            async with asyncio.timeout(self._open_timeout):
                await self._connect(peer, PeerID.from_base58(peer), addresses)
        except TimeoutError:
            raise Unreachable(f"peer {peer} did not answer within {self._open_timeout:g} s") from None
        except (EOFError, OSError) as error:
            raise NetworkError(_DAEMON_GONE) from error
        except (P2PDaemonError, ValueError) as error:
            raise Unreachable(f"peer {peer} can't be reached: {_reason(error)}") from error

    async def serve(self, protocol: str, handler: Handler) -> None:
        self._check_open()
        known = protocol in self._handlers
        self._handlers[protocol] = handler
        if not known:
            call = self._host.p2p.add_binary_stream_handler(protocol, self._accept)
            await self._host.run(call, self._open_timeout, f"serving {protocol}")

    async def addresses(self) -> tuple[str, ...]:
        self._check_open()
        if self._host.client:
            return ()
        call = self._host.p2p.get_visible_maddrs(latest=True)
        try:
            visible = await self._host.run(call, self._open_timeout, "asking for addresses")
        except ValueError:  # there is none: it listens at one that can't be dialled, and has no relay now
            visible = []
        return tuple(dict.fromkeys((*self._host.also, *map(str, visible))))

    async def close(self) -> None:
        await self._host.close()

    async def disconnect(self) -> None:
        """End every stream and handler; the host goes on."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _check_open(self) -> None:
        if self._closed:
            raise NetworkError(f"peer {self.peer_id} has left the network")
        self._host.check_alive()

    def _keep(self, stream: "Libp2pStream") -> "Libp2pStream":
        self._streams.add(stream)
        stream.on_close = self._streams.discard
        return stream

    async def _accept(self, info: StreamInfo, reader: StreamReader, writer: StreamWriter) -> None:
        remote = PeerId(info.peer_id.to_base58())
        stream = Libp2pStream(remote, reader, writer)
        full = len(self._tasks) >= self._max_streams or self._accepted[remote] >= self._max_streams_each
        if self._closed or full:
            stream.close()
            return
        self._accepted[remote] += 1
        task = asyncio.create_task(
            handle(self._handlers[info.proto], self._keep(stream)), name=f"serves {stream.remote}"
        )
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, remote))

    def _served(self, remote: PeerId, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._accepted[remote] -= 1
        if not self._accepted[remote]:
            del self._accepted[remote]

    async def _connect(self, peer: PeerId, target: PeerID, addresses: Iterable[str]) -> None:
        dialled: list[bytes] = []
        for place in (address.removesuffix(f"/p2p/{peer}") for address in addresses):
            with suppress(ValueError):  # who says where a peer is may be wrong; the others may be right
                dialled += [packed(place)] if place else []
        connect = p2pd_pb2.ConnectRequest(peer=target.to_bytes(), addrs=dialled)
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connect)
        _, writer = await self._ask(request)
        writer.close()

    async def _open(self, target: PeerID, protocol: str) -> tuple[StreamReader, StreamWriter]:
        wanted = p2pd_pb2.StreamOpenRequest(peer=target.to_bytes(), proto=[protocol])
        return await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=wanted))

    async def _ask(self, request: p2pd_pb2.Request) -> tuple[StreamReader, StreamWriter]:
        """The connection to the daemon over which it agreed to `request`. (hivemind's own calls leave theirs open when
        the daemon refuses.)"""
        connector: DaemonConnector = self._host.p2p._client.control.daemon_connector
        reader, writer = await connector.open_connection()
        try:
            await write_pbmsg(writer, request)
            response = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, response)
            if response.type == p2pd_pb2.Response.ERROR:
                raise P2PDaemonError(response.error.msg)
        except BaseException:
            writer.close()
            raise
        return reader, writer


class Libp2pStream(Stream):
    """Frames over one unix socket to the daemon. One task may receive at a time; any number may send."""

    def __init__(self, remote: PeerId, reader: StreamReader, writer: StreamWriter) -> None:
        self.remote = remote
        self.on_close: Any = lambda _: None
        self._reader = reader
        self._writer = writer
        self._sending = asyncio.Lock()
        self._total: int | None = None  # of the frame that is being received: a cancelled `receive` can be repeated
        self._closed = False

    @property
    def gone(self) -> bool:
        if self._closed or self._writer.is_closing():
            return True
        events = select.poll()  # the loop does not hear of it while much is waiting to be read
        events.register(self._writer.get_extra_info("socket").fileno(), 0)
        return any(event & select.POLLHUP for _, event in events.poll(0))

    async def send(self, frame: bytes) -> None:
        async with self._sending:
            if self._closed or self._writer.is_closing() or self._reader.at_eof():
                raise self._gone()
            try:
                await self._write(frame)
            except OSError as error:
                self.close()
                raise self._gone() from error

    async def receive(self) -> bytes:
        try:
            if self._total is None:
                self._total = checked_total(await self._reader.readexactly(TOTAL.size))
            rest = await self._reader.readexactly(self._total)
        except (IncompleteReadError, OSError) as error:
            self.close()
            raise self._gone() from error
        except WireError:
            self.close()
            raise
        prefix = TOTAL.pack(self._total)
        self._total = None
        return prefix + rest

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        transport = self._writer.transport
        if self._sending.locked():
            transport.abort()  # wakes a pending `send`; its frame is lost
        elif transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_LINGER, transport.abort)
        self._reader.feed_eof()  # wakes a pending `receive`
        self.on_close(self)

    async def _write(self, frame: bytes) -> None:
        if len(frame) <= _CHUNK:
            self._writer.write(frame)
            await self._writer.drain()
            return
        view = memoryview(frame)
        try:
            for start in range(0, len(frame), _CHUNK):
                self._writer.write(view[start : start + _CHUNK])
                await self._writer.drain()
        except asyncio.CancelledError:
            self.close()  # half a frame is out: nothing sensible can follow it
            raise

    def _gone(self) -> StreamClosed:
        return StreamClosed(f"the stream with peer {self.remote} is closed")


async def _start_daemon(scratch: Scratch, **options: Any) -> P2P:
    """A running daemon with its sockets in `scratch`, or none: a start that fails or is cancelled leaves no child."""
    made: list[P2P] = []

    class Daemon(P2P):  # type: ignore[misc]  # hivemind is untyped
        _UNIX_SOCKET_PREFIX = f"/unix{scratch.path}/"

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        @staticmethod
        def _make_process_args(*args: object, **kwargs: object) -> list[str]:
            daemon = [*P2P._make_process_args(*args, **kwargs), *_RELAYING]
            return [sys.executable, "-I", daemon_launcher.__file__, *daemon]

    try:
        return await Daemon.create(**options)
    except BaseException:
        for p2p in made:
            p2p._terminate()
            if p2p._child is not None:
                await p2p._child.wait()
        raise


def _start_error(message: str, place: str, initial_peers: Sequence[str]) -> SwarmError:
    line = message.rpartition("Daemon failed to start: ")[2]
    if "bootstrap peers" in line or (initial_peers and "failed to start in" in line):
        advice = "check that they run and can be reached from here, or ask for a newer address"
        return NetworkError(f"none of the initial peers answered: {', '.join(initial_peers)}; {advice}")
    if "failed to listen" in line:
        return cannot_listen(place, line)
    return NetworkError(f"the libp2p daemon did not start: {line}")


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.replace("\n", " ")[:300]
