"""The seam to the swarm's shared memory: announce a record, read records; the same for members of a training run.

`swarm.kademlia` is the real side (hivemind's DHT), `swarm.memory` the twin; both pass
`tests/swarm/test_directory_contract.py`. Records that are forged, expired or malformed never come out of `read`.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from swarm.errors import NetworkError
from swarm.identity import Identity
from swarm.ids import Digest, PeerId
from swarm.record import PeerRecord, Presence

__all__ = ["Directory"]


_log = logging.getLogger(__name__)


class Directory(ABC):
    closed: bool

    @abstractmethod
    async def announce(self, record: PeerRecord) -> None:
        """Make `record` known until it expires; a later `issued` replaces it. Raises NetworkError if nobody took it,
        RecordError for a record that nobody would: expired, of a wrong lifetime, or with fields out of bounds."""

    @abstractmethod
    async def read(self, model: Digest | None = None) -> tuple[PeerRecord, ...]:
        """Every live record of `model`, or of all models, the newest of each peer, at most a few seconds old."""

    @abstractmethod
    async def appear(self, presence: Presence, run: Identity) -> None:
        """As `announce`, for who takes part in the run whose members hold the key `run`."""

    @abstractmethod
    async def present(self, run: PeerId) -> tuple[Presence, ...]:
        """As `read`: the newest of each member of that run. Nobody but members can be among them."""

    async def watch(self, model: Digest | None, period: float) -> AsyncIterator[tuple[PeerRecord, ...]]:
        """What `read` gives, again every `period` seconds until the directory is closed; a failed read is skipped."""
        while not self.closed:
            try:
                records = await self.read(model)
            except NetworkError as error:
                _log.info("a reading of the directory failed: %s", error)
            else:
                yield records
            await asyncio.sleep(period)

    @abstractmethod
    async def close(self) -> None:
        """End it; what was announced stays until it expires. Reading or announcing later raises NetworkError."""
