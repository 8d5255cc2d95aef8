"""A look at the swarm, as the directory has it now."""

import asyncio
from collections.abc import Callable

from routing.view import View
from swarm.directory import Directory
from swarm.errors import NetworkError
from swarm.ids import Digest

__all__ = ["look_around"]

READ_PATIENCE = 15.0  # seconds for one reading of the directory


async def look_around(directory: Directory, model: Digest, num_blocks: int, clock: Callable[[], float]) -> View:
    """Who there is; `clock`: Unix time. Raises NetworkError."""
    try:
        async with asyncio.timeout(READ_PATIENCE):
            records = await directory.read(model)
    except TimeoutError:
        raise NetworkError(f"the directory did not answer within {READ_PATIENCE:.0f} s") from None
    return View.of(records, model=model, num_blocks=num_blocks, now=clock())
