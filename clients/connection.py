"""A model's way into the swarm from ordinary, blocking code: one event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from typing import Any, Self, TypeVar

from clients.client import Client, Model
from clients.events import Observer, both
from clients.history import Embed
from clients.session import Session
from clients.training.chains import TrainingChains
from swarm.checkpoint import Checkpoint
from swarm.errors import NetworkError
from swarm.event_loop import new_event_loop
from swarm.identity import Identity
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost

__all__ = ["Connection", "join"]

T = TypeVar("T")
CLOSE_SECONDS = 10.0


async def join(stack: AsyncExitStack, initial_peers: Sequence[str]) -> tuple[Libp2pHost, KademliaDirectory]:
    """Enter a swarm as a client under an identity of the moment; `stack` leaves it. Raises NetworkError."""
    identity = Identity.ephemeral()
    host = await Libp2pHost.start(identity, initial_peers=initial_peers)
    stack.push_async_callback(host.close)
    directory = await KademliaDirectory.start(host, identity, initial_peers, client_mode=True, new_swarm=False)
    stack.push_async_callback(directory.close)
    return host, directory


class Connection:
    """Safe to use from many threads. `close` is idempotent; after it every call raises NetworkError."""

    def __init__(
        self,
        enter: Callable[[AsyncExitStack], Coroutine[Any, Any, Client]],
        *,
        patience: float = 30.0,
        observer: Observer | None = None,
    ) -> None:
        """`enter` joins a swarm on this connection's loop and leaves behind on the stack how to leave it again.
        Sessions wait `patience` seconds for peers; `observer` is told what happens to them, on the loop's thread."""
        self._patience = patience
        self._training: TrainingChains | None = None
        self._observer = observer
        self._loop = new_event_loop()
        self._stack = AsyncExitStack()
        self._lock = threading.Lock()
        self._closed = False
        self._under_way: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="swarm connection", daemon=True)
        self._thread.start()
        try:
            self.client = self.call(self._enter(enter))
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
        observer: Observer | None = None,
        share_prefixes: bool = True,
        precisions: Sequence[str] = (),
    ) -> Self:
        """Join the swarm that `initial_peers` (multiaddresses) belong to. Raises NetworkError when none answers."""
        model = Model(checkpoint.name, checkpoint.digest, checkpoint.num_blocks, checkpoint.hidden_size)

        async def enter(stack: AsyncExitStack) -> Client:
            host, directory = await join(stack, initial_peers)
            client = Client(
                host.transport, directory, model, codec=codec, share_prefixes=share_prefixes, precisions=precisions
            )
            return await stack.enter_async_context(client)

        return cls(enter, patience=patience, observer=observer)

    async def _enter(self, enter: Callable[[AsyncExitStack], Coroutine[Any, Any, Client]]) -> Client:
        return await enter(self._stack)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the connection's loop and wait for it; an interrupt of the caller cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run `work` on the connection's loop without waiting."""
        if self._closed:
            work.close()
            raise NetworkError("this connection to the swarm is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    async def _leave(self) -> None:
        await self._stack.aclose()
        left = asyncio.all_tasks() - {asyncio.current_task()}  # hivemind leaves timers behind
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def session(self, *, embed: Embed, lease_tokens: int, observer: Observer | None = None) -> Session:
        """An open session. `lease_tokens`: over all rows; `observer` is told what happens to this one, beside the
        connection's own. Raises MissingBlocks or Busy when patience runs out."""
        tell = both(self._observer, observer)
        session = Session(self.client, embed=embed, lease=lease_tokens, patience=self._patience, observer=tell)
        try:
            await session.open()
        except BaseException:
            await session.close()
            raise
        return session

    async def training(self) -> TrainingChains:
        """The chains that all training of this connection uses."""
        if self._training is None:
            self._training = TrainingChains(self.client, patience=self._patience)
            self._stack.push_async_callback(self._training.close)
        return self._training

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for future in list(self._under_way):
            future.cancel()  # whoever waits for it is told
        leaving = asyncio.run_coroutine_threadsafe(self._leave(), self._loop)
        with suppress(TimeoutError):  # a daemon that hangs dies with this process
            leaving.result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        self._loop.close()
