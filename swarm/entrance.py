"""The ways into a swarm as people write them: addresses of its peers. Light: looks at text alone."""

import re
from collections.abc import Iterable

from swarm.errors import UsageError

__all__ = ["parse_peers"]

_ADDRESS = re.compile(r"(/[^/\s]+)+/p2p/[1-9A-HJ-NP-Za-km-z]{40,64}")
_SHOWN = 120  # characters of what is no address


def parse_peers(texts: Iterable[str]) -> tuple[str, ...]:
    """Addresses from options that may each hold several, parted by commas or blanks. Raises UsageError."""
    addresses = tuple(address for text in texts for address in text.replace(",", " ").split())
    for address in addresses:
        if not _ADDRESS.fullmatch(address):
            raise UsageError(
                f"'{address[:_SHOWN]}' is no peer's address; one looks like /ip4/203.0.113.7/tcp/31330/p2p/12D3KooW… "
                "and every serving peer prints its own"
            )
    return tuple(dict.fromkeys(addresses))
