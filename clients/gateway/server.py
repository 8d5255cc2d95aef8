"""The HTTP server under the application: its socket, its limits, its end."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from swarm.errors import NetworkError

__all__ = ["HttpServer", "listen"]

BACKLOG = 512  # connections that the system holds until we take them
KEEP_ALIVE = 75  # seconds that an idle connection stays open


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port` (0: any free one). Raises NetworkError when that can't be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise NetworkError(f"can't listen on {host}:{port}: {error}; give another --host or --port") from error


class HttpServer(uvicorn.Server):
    """Serves until `stop`, on a socket that is listening already. It leaves signals to whoever runs it."""

    def __init__(self, app: ASGIApp, *, linger: float) -> None:
        """`linger`: seconds that requests get to finish after `stop`."""
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(linger)),
        )
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Take no more connections; what runs may finish."""
        self.should_exit = True
