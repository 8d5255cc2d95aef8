"""What whoever runs a gateway asks for: the options of `swarm gateway`, checked."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from clients.gateway.adapters import AdapterOption, of_models
from clients.gateway.keys import Key
from clients.gateway.policy import LOOPBACK, Policy
from swarm.errors import UsageError

__all__ = ["GatewaySettings"]

HIGHEST_PORT = 65535
MOST_WAITING = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The options of one gateway. Raises UsageError where they don't go together."""

    models: tuple[str, ...]  # empty: all that the swarm announces and this machine has
    initial_peers: tuple[str, ...]
    adapters: tuple[AdapterOption, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    keys: tuple[Key, ...] = ()
    running: int = 64
    queue: int = 64
    patience: float = 30.0  # s
    codec: str | None = None
    cache: Path
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        for option, value, least, most in (
            ("--port", self.port, 0, HIGHEST_PORT),
            ("--max-running", self.running, 1, MOST_WAITING),
            ("--queue", self.queue, 0, MOST_WAITING),
        ):
            if not least <= value <= most:
                raise UsageError(f"{option} is a whole number between {least} and {most}, not {value}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together: give both")
        for option, path in (("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)):
            if path is not None and not path.is_file():
                raise UsageError(f"{option}: there is no file {path}")
        for origin in self.cors_origins:
            _check_origin(origin)
        doubled = {name for name in self.models if self.models.count(name) > 1}
        if doubled:
            raise UsageError(f"{doubled.pop()} is named twice")
        if self.models:
            of_models(self.adapters, self.models)

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host.lower() in LOOPBACK

    @property
    def policy(self) -> Policy:
        allowed = frozenset(name.lower() for name in self.allowed_hosts)
        hosts = LOOPBACK | {self.host.strip("[]").lower()} | allowed if self.local or allowed else None
        return Policy(hosts=hosts, origins=self.cors_origins)


def _check_origin(origin: str) -> None:
    parts = urlsplit(origin)
    if origin != "*" and (not parts.scheme or not parts.netloc or parts.path or parts.query):
        raise UsageError(f"--cors-origin '{origin}': give * or an origin such as https://chat.example.org")
