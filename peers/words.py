"""What another process says, line by line."""

import asyncio
from collections.abc import AsyncIterator

__all__ = ["read_lines"]


async def read_lines(stream: asyncio.StreamReader, longest: int) -> AsyncIterator[bytes]:
    """Until the last process that holds the other end has ended; a line of more than about `longest` bytes in pieces,
    and what is left at the end if it is not empty."""
    rest = b""
    while part := await stream.read(longest):
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) >= longest:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line
    if rest:
        yield rest
