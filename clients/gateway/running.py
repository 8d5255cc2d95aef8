"""A gateway's life: it listens, joins, answers, and leaves in good order."""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack

from clients.gateway.admission import Admission
from clients.gateway.app import build
from clients.gateway.gateway import Gateway
from clients.gateway.grammar import Grammars
from clients.gateway.joining import Joined, Shared, choose_models, join_models, read_adapters, share
from clients.gateway.keys import Keys
from clients.gateway.metrics import Metrics
from clients.gateway.ready import ReadyGateway, ReadyModel
from clients.gateway.served import Models, Served
from clients.gateway.server import HttpServer
from clients.gateway.settings import GatewaySettings
from clients.network import Network
from swarm.errors import NetworkError
from swarm.event_loop import new_event_loop
from swarm.stopping import told_by, until_told

__all__ = ["assemble", "run"]

_log = logging.getLogger(__name__)

HASTE = 1.0  # seconds that running answers get after Ctrl-C

Show = Callable[[ReadyGateway], None]


def run(settings: GatewaySettings, sock: socket.socket, show: Show, *, stop_with_stdin: bool = False) -> int:
    """Answers on `sock`, which listens, until told to stop; the exit status. `show` is called once it answers. Raises
    UsageError, NetworkError."""
    own = read_adapters(settings.adapters, settings.models, cache=settings.cache) if settings.models else {}
    with ExitStack() as stack:
        network = stack.enter_context(Network(settings.initial_peers, memory=settings.cache))
        names = settings.models
        if not names:
            names = choose_models(network.records(), settings.cache)
            own = read_adapters(settings.adapters, names, cache=settings.cache)
        _log.info("joining as a client of %s", ", ".join(names))
        joined = join_models(
            names,
            network,
            stack,
            cache=settings.cache,
            codec=settings.codec,
            patience=settings.patience,
            adapters=own,
        )
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            work = _answer(settings, sock, network, joined, show)
            return runner.run(until_told(work, stdin=stop_with_stdin))


def assemble(settings: GatewaySettings, shared: Sequence[Shared]) -> Gateway:
    """What requests share; on the event loop that will answer them."""
    clock = time.monotonic
    served = [each for one in shared for each in one.served]
    metrics = Metrics(one.name for one in served)
    grammars = Grammars()
    for one in served:
        grammars.prepare(one)
    return Gateway(
        models=Models(served, {one.name: one.hosted for one in shared}),
        keys=Keys(settings.keys, clock),
        admission=Admission(running=settings.running, queue=settings.queue, metrics=metrics, clock=clock),
        metrics=metrics,
        policy=settings.policy,
        grammars=grammars,
    )


async def _answer(
    settings: GatewaySettings, sock: socket.socket, network: Network, joined: Sequence[Joined], show: Show
) -> None:
    """Raises NetworkError when the way into the network is lost."""
    async with AsyncExitStack() as stack:
        shared = [await share(one, stack) for one in joined]
        gateway = assemble(settings, shared)
        server = HttpServer(build(gateway), certificate=settings.tls_cert, key=settings.tls_key)
        serving = asyncio.create_task(server.serve([sock]), name="http")
        stack.push_async_callback(server.end, serving, HASTE)
        await server.up.wait()
        show(_ready(settings, sock, [each for one in shared for each in one.served]))
        lost = asyncio.wrap_future(network.ended())
        try:
            await asyncio.wait({serving, lost}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as told:
            seconds = HASTE if told_by(told) is signal.SIGINT else settings.shutdown_seconds
            _log.info("leaving; running answers get %g s", seconds)
            gateway.leaving.set()
            await server.end(serving, seconds)
            raise
        finally:
            lost.cancel()
        if serving.done():
            serving.result()
        raise NetworkError("the libp2p daemon of this gateway has ended; start it again")


def _ready(settings: GatewaySettings, sock: socket.socket, served: Sequence[Served]) -> ReadyGateway:
    return ReadyGateway(
        host=settings.host,
        port=sock.getsockname()[1],
        tls=settings.tls_cert is not None,
        local=settings.local,
        keys=len(settings.keys),
        models=[ReadyModel(one.name, one.trouble()) for one in served],
    )
