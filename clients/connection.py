"""A model's way into the swarm from ordinary, blocking code: an event loop in another thread."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from clients.auditing import Auditor
from clients.client import Client, Model
from clients.events import Observer, both
from clients.history import Embed
from clients.loop_thread import LoopThread, Submitted
from clients.session import Session
from clients.training.chains import TrainingChains
from clients.training.compression import Compress
from routing.hosting import Hosted
from swarm.acquaintances import Acquaintances, file_of, ways_in
from swarm.addresses import peer_of
from swarm.checkpoint import Checkpoint
from swarm.door import Door, knock, way_in
from swarm.errors import NetworkError, UsageError, WireError
from swarm.identity import Identity
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.training import PackedAdapter

__all__ = ["Connection", "join", "routed"]

T = TypeVar("T")


async def join(
    stack: AsyncExitStack,
    initial_peers: Sequence[str],
    *,
    identity: Identity | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    announce: Sequence[str] = (),
    memory: Path | None = None,
) -> tuple[Libp2pHost, KademliaDirectory]:
    """Enter a swarm as a client, by default under an identity of the moment, that listens at `host`:`port` and tells
    others `announce` instead; `stack` leaves it. `initial_peers` may hold an invite. `memory`: a folder that remembers
    peers, for the day when nobody is left at those addresses. Raises NetworkError, AccessError."""
    identity = identity or Identity.ephemeral()
    addresses, invite = way_in(initial_peers)
    seen = None if memory is None else file_of(memory, addresses)
    if seen is not None:
        addresses = await ways_in(addresses, seen)
    door = None if invite is None else Door(invite, identity.peer_id)
    libp2p = await Libp2pHost.start(
        identity, host=host, port=port, announce=announce, initial_peers=addresses, door=door
    )
    stack.push_async_callback(libp2p.close)
    directory = await KademliaDirectory.start(
        libp2p, identity, addresses, client_mode=True, acquaintances=Acquaintances(addresses, seen)
    )
    stack.push_async_callback(directory.close)
    if door is not None:
        await _hear(libp2p, addresses)
    return libp2p, directory


async def _hear(host: Libp2pHost, addresses: Sequence[str]) -> None:
    """Which invites to the private swarm were taken back, from the first who says."""
    for address in addresses:
        with suppress(NetworkError, WireError):
            await knock(host.open_transport, peer_of(address), [address], host.door)
            return


def routed(checkpoint: Checkpoint) -> Model:
    """What has to be known of a checkpoint to route through it."""
    return Model(checkpoint.name, checkpoint.digest, checkpoint.num_blocks, checkpoint.hidden_size)


class Connection:
    """Safe to use from many threads. `close` is idempotent; after it every call raises NetworkError."""

    def __init__(
        self,
        enter: Callable[[AsyncExitStack], Coroutine[Any, Any, Client]],
        *,
        patience: float = 30.0,
        compress: Compress = Compress.NONE,
        audit_rate: float = 0.0,
        observer: Observer | None = None,
        thread: LoopThread | None = None,
    ) -> None:
        """`enter` joins a swarm on this connection's loop and leaves behind on the stack how to leave it again.
        Sessions wait `patience` seconds for peers; `observer` is told what happens to them, on the loop's thread, which
        is `thread` where several connections share one. `compress`: how training spares slow lines. `audit_rate`: the
        share of steps that other peers are asked to compute again (see `clients.auditing`)."""
        if not 0 <= audit_rate <= 1:
            raise UsageError(f"audit_rate is a share of steps between 0 and 1, not {audit_rate:g}")
        self.auditor: Auditor | None = None
        self._patience = patience
        self._compress = compress
        self._training: TrainingChains | None = None
        self._observer = observer
        used = thread or LoopThread("swarm connection")
        self._own = used if thread is None else None
        self._work = Submitted(used.loop)
        self._stack = AsyncExitStack()
        try:
            self.client = self.call(enter(self._stack))
            if audit_rate:
                self.auditor = self.call(self._begin_audits(audit_rate))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        checkpoint: Checkpoint,
        *,
        initial_peers: Sequence[str],
        codec: str = "fp32",
        patience: float = 30.0,
        compress: Compress = Compress.NONE,
        audit_rate: float = 0.0,
        observer: Observer | None = None,
        share_prefixes: bool = True,
        precisions: Sequence[str] = (),
        memory: Path | None = None,
    ) -> Self:
        """Join the swarm that `initial_peers` (multiaddresses) belong to; `memory`: see `join`. Raises NetworkError
        when none answers."""

        async def enter(stack: AsyncExitStack) -> Client:
            host, directory = await join(stack, initial_peers, memory=memory)
            client = Client(
                host.transport,
                directory,
                routed(checkpoint),
                codec=codec,
                share_prefixes=share_prefixes,
                precisions=precisions,
                measures=True,
            )
            return await stack.enter_async_context(client)

        return cls(enter, patience=patience, compress=compress, audit_rate=audit_rate, observer=observer)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the connection's loop and wait for it; an interrupt of the caller cancels it."""
        return self._work.call(work)

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run `work` on the connection's loop without waiting."""
        return self._work.submit(work)

    async def session(
        self,
        *,
        embed: Embed,
        lease_tokens: int,
        observer: Observer | None = None,
        adapters: Mapping[int, PackedAdapter] | None = None,
        hosted: str | None = None,
    ) -> Session:
        """An open session. `lease_tokens`: over all rows; `observer` is told what happens to this one, beside the
        connection's own; `adapters`: by block, what peers are sent to compute with; or `hosted`: the digest of one that
        they host. Raises MissingBlocks or Busy when patience runs out."""
        session = Session(
            self.client,
            embed=embed,
            lease=lease_tokens,
            patience=self._patience,
            observer=both(self._observer, observer),
            adapters=adapters,
            hosted=hosted,
            auditor=self.auditor,
        )
        try:
            await session.open()
        except BaseException:
            await session.close()
            raise
        return session

    async def hosted(self, name: str) -> Hosted:
        """The adapter that peers host under `name`. Raises UsageError, MissingBlocks or NetworkError."""
        return await self.client.hosted(name)

    async def _begin_audits(self, rate: float) -> Auditor:
        auditor = Auditor(self.client, rate, self._observer or (lambda _: None))
        self._stack.push_async_callback(auditor.close)
        return auditor

    async def training(self) -> TrainingChains:
        """The chains that all training of this connection uses."""
        if self._training is None:
            self._training = TrainingChains(self.client, patience=self._patience, compress=self._compress)
            self._stack.push_async_callback(self._training.close)
        return self._training

    def close(self) -> None:
        if self._work.end(self._stack.aclose()) and self._own is not None:
            self._own.close()
