"""The ways into a swarm as people write them: addresses of its peers. Light: looks at text alone."""

import ipaddress
import re
from collections.abc import Iterable

from swarm.errors import UsageError

__all__ = ["HIGHEST_PORT", "INVITE", "USUAL_PORT", "announced_addresses", "is_loopback", "is_relayed", "parse_peers"]

USUAL_PORT = 31330  # of a serving peer, so that it keeps its address when it is started again
HIGHEST_PORT = 65535

_ADDRESS = re.compile(r"(/[^/\s]+)+/p2p/[1-9A-HJ-NP-Za-km-z]{40,64}")
INVITE = "swarm-invite."  # what the line of one begins with

_SHOWN = 120  # characters of what is no address


def parse_peers(texts: Iterable[str]) -> tuple[str, ...]:
    """Addresses from options that may each hold several, parted by commas or blanks; an invite to a private swarm, or
    `@` and the file that holds one, counts as an address. Raises UsageError."""
    addresses = tuple(address for text in texts for address in text.replace(",", " ").split())
    for address in addresses:
        if not (_ADDRESS.fullmatch(address) or address.startswith((INVITE, "@"))):
            raise UsageError(
                f"'{address[:_SHOWN]}' is no peer's address; one looks like /ip4/203.0.113.7/tcp/31330/p2p/12D3KooW… "
                "and every serving peer prints its own"
            )
    return tuple(dict.fromkeys(addresses))


def announced_addresses(texts: Iterable[str], port: int | None) -> tuple[str, ...]:
    """Multiaddresses from `--announce` options: as they are, or made from IP or IP:PORT (without: `port`). Raises
    UsageError."""
    parts = [part for text in texts for part in text.replace(",", " ").split()]
    return tuple(part if part.startswith("/") else _multiaddress(part, port) for part in parts)


def is_loopback(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


def is_relayed(addresses: Iterable[str]) -> bool:
    """Whether a peer with these addresses is reached through others. What can be dialled asks nobody to relay."""
    return any("/p2p-circuit/" in address for address in addresses)


def _multiaddress(text: str, port: int | None) -> str:
    host, colon, last = text.rpartition(":")
    if ":" in host and not host.startswith("["):  # a bare IPv6 address
        host, colon = "", ""
    host, number = (host.strip("[]"), last) if colon else (text.strip("[]"), str(port or ""))
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise UsageError(f"--announce {text}: give an IP address, IP:PORT, or a multiaddress such as /dns4/…") from None
    if not (number.isdecimal() and 0 < int(number) <= HIGHEST_PORT):
        raise UsageError(f"--announce {text}: which port? Give IP:PORT, or --port as well")
    return f"/ip{version}/{host}/tcp/{number}"
