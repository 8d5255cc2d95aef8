"""The HTTP server under the application: its socket, its limits, its end."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from clients.gateway.connections import BoundedConnection
from swarm.errors import NetworkError, UsageError

__all__ = ["HttpServer", "check_certificate", "listen"]

BACKLOG = 512  # connections that the system holds until we take them
CONNECTIONS = 1024  # open at once; more are answered with 503
KEEP_ALIVE = 75  # seconds that an idle connection stays open
CANCEL_SECONDS = 5.0  # that requests get to clean up when they are cut short


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port` (0: any free one). Raises NetworkError when that can't be had."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = "another program listens there; give another --port, or --port 0 for any that is free"
        elif error.errno == errno.EACCES:
            advice = "that port is for the system's administrator; give one above 1023"
        else:
            advice = f"{error.strerror or error}; give another --host"
        raise NetworkError(f"can't listen on {host}, port {port}: {advice}") from error


def check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Raises UsageError for PEM files that can't be used together."""
    if certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        said = str(error) or type(error).__name__
        raise UsageError(f"--tls-cert {certificate} and --tls-key {key} can't be used together: {said}") from error


def _no_password() -> str:
    raise ValueError("the key has a password; give one without")


class HttpServer(uvicorn.Server):
    """Serves until `end`, on a socket that is listening already. It leaves signals to whoever runs it."""

    def __init__(self, app: ASGIApp, *, certificate: Path | None = None, key: Path | None = None) -> None:
        """`certificate` and `key`: PEM files, for https; see `check_certificate`."""
        config = uvicorn.Config(
            app,
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def end(self, serving: "asyncio.Task[None]", seconds: float) -> None:
        """Take no more connections; what runs may finish within `seconds`, and is cancelled then. `serving` is the task
        of `serve`. Safe to repeat, and to cancel: then the rest is cut short."""
        self.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]  # it is a time limit of asyncio
        self.should_exit = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds + CANCEL_SECONDS):
                    await asyncio.wait({serving})
        finally:
            self.force_exit = True
            left = set(self.server_state.tasks)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=CANCEL_SECONDS)
            if not serving.done():
                serving.cancel()
