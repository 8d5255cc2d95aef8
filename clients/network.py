"""One presence in a swarm for several models: a libp2p host and a directory that their connections share."""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from clients.client import Client
from clients.connection import Connection, join, routed
from clients.events import Observer
from clients.loop_thread import LoopThread, Submitted
from clients.training.compression import Compress
from swarm.checkpoint import Checkpoint
from swarm.record import PeerRecord

__all__ = ["Network"]


class Network:
    """A context manager; close the connections before it. Blocking, and safe to use from many threads."""

    def __init__(self, initial_peers: Sequence[str], *, memory: Path | None = None) -> None:
        """Join the swarm that `initial_peers` (multiaddresses) belong to; `memory`: see `clients.connection.join`.
        Raises NetworkError when none answers."""
        self._thread = LoopThread("swarm network")
        self._work = Submitted(self._thread.loop)
        self._stack = AsyncExitStack()
        try:
            self._host, self._directory = self._work.call(join(self._stack, initial_peers, memory=memory))
        except BaseException:
            self.close()
            raise

    def records(self) -> tuple[PeerRecord, ...]:
        """Every live record of all models. Raises NetworkError."""
        return self._work.call(self._directory.read())

    def ended(self) -> Future[None]:
        """Done when the presence has ended, on purpose or not."""
        return self._work.submit(self._host.ended())

    def connect(
        self,
        checkpoint: Checkpoint,
        *,
        codec: str = "fp32",
        patience: float = 30.0,
        compress: Compress = Compress.NONE,
        audit_rate: float = 0.0,
        observer: Observer | None = None,
        share_prefixes: bool = True,
        precisions: Sequence[str] = (),
    ) -> Connection:
        """A model's way into this swarm; as `Connection.open`."""

        async def enter(stack: AsyncExitStack) -> Client:
            client = Client(
                self._host.transport,
                self._directory,
                routed(checkpoint),
                codec=codec,
                share_prefixes=share_prefixes,
                precisions=precisions,
                measures=True,
            )
            return await stack.enter_async_context(client)

        return Connection(
            enter, patience=patience, compress=compress, audit_rate=audit_rate, observer=observer, thread=self._thread
        )

    def close(self) -> None:
        """Leave the swarm; safe to repeat."""
        if self._work.end(self._stack.aclose()):
            self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
