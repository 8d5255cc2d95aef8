"""A gateway on a real server in this process: its own thread, its own event loop, a port that the system picks."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.applications import Starlette
from starlette.routing import BaseRoute

from clients.gateway.admission import Admission
from clients.gateway.app import build
from clients.gateway.gateway import Gateway
from clients.gateway.keys import Key, Keys
from clients.gateway.metrics import Metrics
from clients.gateway.policy import LOOPBACK, Policy
from clients.gateway.served import Hosting, Models, Served
from clients.gateway.server import HttpServer, listen
from routing.view import View
from swarm.event_loop import new_event_loop
from swarm.ids import Digest, PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState

__all__ = ["MODEL", "LiveGateway", "record", "view_of"]

T = TypeVar("T")
LIMIT = 30.0  # seconds for starting and stopping
MODEL = Digest("ab" * 32)


def record(name: str, blocks: Span, *, num_blocks: int = 4, state: PeerState = PeerState.ONLINE) -> PeerRecord:
    """What a peer called `name` says of itself."""
    now = time.time()
    return PeerRecord(
        contact=Contact(PeerId(f"id-of-{name}"), (f"/memory/{name}",)),
        model=MODEL,
        model_name="tiny",
        num_blocks=num_blocks,
        span=blocks,
        state=state,
        throughput=50.0,
        prefill=1000.0,
        cache_left=4096,
        precision="fp32",
        version="0",
        public_name=name,
        reason="the test says so",
        queue=0,
        issued=now,
        expires=now + 3600,
    )


def view_of(*records: PeerRecord, num_blocks: int = 4) -> View:
    return View.of(records, model=MODEL, num_blocks=num_blocks, now=time.time())


class LiveGateway:
    """A context manager. `url` is where it listens; `base_url` what OpenAI's clients are given."""

    def __init__(
        self,
        models: Iterable[Served],
        *,
        running: int = 8,
        queue: int = 64,
        keys: Iterable[Key] = (),
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
        certificate: tuple[Path, Path] | None = None,
        hosted: Mapping[str, Hosting] | None = None,
    ) -> None:
        """`clock` in seconds, for limits of keys and for what is measured; `certificate` and its key, for https;
        `hosted`: adapters of peers, by model."""

        def make() -> Gateway:
            served = Models(models, hosted)
            metrics = Metrics(one.label for one in served)
            admission = Admission(running=running, queue=queue, metrics=metrics, clock=clock)
            return Gateway(
                models=served,
                keys=Keys(keys, clock),
                admission=admission,
                metrics=metrics,
                policy=policy or Policy(hosts=LOOPBACK),
            )

        self._make = make
        self._certificate, self._key = certificate or (None, None)
        self._up = threading.Event()
        self._socket = listen("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self.gateway: Gateway
        self.app: Starlette
        self._loop: asyncio.AbstractEventLoop
        self._server: HttpServer

    @property
    def url(self) -> str:
        return f"{'http' if self._certificate is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def add(self, route: BaseRoute) -> None:
        """One more endpoint, a test's own."""
        self.call(self.app.routes.append, route)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function` returns when it is called on the server's loop."""

        async def work() -> T:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(LIMIT)

    @property
    def listening(self) -> bool:
        return any(server.is_serving() for server in self._server.servers)

    def end(self, seconds: float) -> "Future[None]":
        """Begin to end, as when told to stop."""
        return asyncio.run_coroutine_threadsafe(self._server.end(self._serving, seconds), self._loop)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds; it is asked on the server's loop, turn by turn."""

        async def work() -> None:
            async with asyncio.timeout(LIMIT):
                while not condition():  # noqa: ASYNC110 (what is waited for tells nobody)
                    await asyncio.sleep(0.001)

        asyncio.run_coroutine_threadsafe(work(), self._loop).result(LIMIT)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._up.wait(LIMIT):
            raise TimeoutError("the gateway did not start")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self.gateway.leaving.set)
        self._loop.call_soon_threadsafe(self._told.set)
        self._thread.join(LIMIT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.gateway = self._make()
        self.app = build(self.gateway)
        self._server = HttpServer(self.app, certificate=self._certificate, key=self._key)
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        await self._server.up.wait()
        self._told = asyncio.Event()
        self._up.set()
        await self._told.wait()
        await self._server.end(self._serving, 1.0)
