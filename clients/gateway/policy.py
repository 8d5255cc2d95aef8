"""What the gateway takes from whoever connects: from where, how much, how slowly."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from clients.gateway.errors import ApiError

__all__ = ["LOOPBACK", "Policy"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`hosts`: names under which requests may address the gateway, None for any. A gateway for this machine alone has
    to insist on them: a web page anywhere can have its own name point here, and would then speak to the gateway as if
    from its own site. `origins`: other sites whose pages may use the gateway, "*" for all."""

    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    body_bytes: int = 4 << 20
    body_seconds: float = 60.0  # for sending a request
    send_seconds: float = 60.0  # for taking a piece of the answer

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 403 for a request that a page from elsewhere has made, or may have made."""
        host = headers.get("host", "")
        if self.hosts is not None and _hostname(host) not in self.hosts:
            message = f"This gateway does not answer under the name '{host[:80]}'; --allow-host adds a name"
            raise ApiError(403, message, code="wrong_host")
        origin = headers.get("origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            message = f"Pages of {origin[:80]} may not use this gateway; --cors-origin allows it"
            raise ApiError(403, message, code="wrong_origin")


def _hostname(host: str) -> str:
    """Without the port; lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
