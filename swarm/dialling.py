"""Whether somebody listens at an address: a plain TCP connection, before anything of libp2p is started."""

import asyncio
import re
from contextlib import suppress

__all__ = ["tcp_place", "why_no_connection"]

CONNECT_SECONDS = 4.0

_TCP = re.compile(r"/(?:ip[46]|dns[46]?)/([^/]+)/tcp/(\d+)")


def tcp_place(address: str) -> tuple[str, int] | None:
    """Host and port in a multiaddress; None where it says nothing of TCP."""
    match = _TCP.search(address)
    return None if match is None else (match[1], int(match[2]))


async def why_no_connection(address: str) -> str | None:
    """Why no TCP connection can be made; None where one can, or the address says nothing of TCP."""
    found = tcp_place(address)
    if found is None:
        return None
    place = f"{found[0]} port {found[1]}"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(*found)
    except TimeoutError:
        return f"{place} does not answer: the address is wrong, or a firewall is before it"
    except ConnectionRefusedError:
        return f"nothing listens at {place}"
    except (OSError, OverflowError, UnicodeError) as error:
        return f"{place} can't be reached ({error})"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return None
