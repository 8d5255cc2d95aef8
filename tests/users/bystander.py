"""A node of a swarm's directory that serves nothing, on a thread of this process."""

import asyncio
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from hivemind.dht.routing import DHTID
from hivemind.proto import dht_pb2

from swarm.event_loop import new_event_loop
from swarm.identity import Identity
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost

__all__ = ["Bystander"]

LIMIT = 60.0  # seconds to start and to end


class Bystander:
    """A context manager; `address` is where it can be joined. With a clock that is `ahead` by some seconds it is a twin
    of a node, which answers nothing but what time it is."""

    address: str

    def __init__(self, *, ahead: float | None = None) -> None:
        self._ahead = ahead

    def __enter__(self) -> Self:
        self._leave = threading.Event()
        self._known: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.address = self._known.result(LIMIT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave.set()
        self._thread.join(LIMIT)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(self._stand())
        except BaseException as error:  # it is raised where the address is awaited
            if self._known.done():
                raise
            self._known.set_exception(error)

    async def _stand(self) -> None:
        identity = Identity.ephemeral()
        host = await Libp2pHost.start(identity)
        try:
            directory = None
            if self._ahead is None:
                directory = await KademliaDirectory.start(host, identity, new_swarm=True)
            else:
                await host.p2p.add_protobuf_handler("DHTProtocol.rpc_ping", self._tell_time, dht_pb2.PingRequest)
            self._known.set_result((await host.transport.addresses())[0])
            await asyncio.to_thread(self._leave.wait)
            if directory is not None:
                await directory.close()
        finally:
            await host.close()

    async def _tell_time(self, request: Any, context: Any) -> Any:
        assert self._ahead is not None
        node = dht_pb2.NodeInfo(node_id=DHTID.generate().to_bytes())
        return dht_pb2.PingResponse(peer=node, dht_time=time.time() + self._ahead, available=True)
