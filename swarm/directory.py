"""The seam to the swarm's shared memory: announce a record, read records.

`swarm.kademlia` is the real side (hivemind's DHT), `swarm.memory` the twin; both pass
`tests/swarm/test_directory_contract.py`. Records that are forged, expired or malformed never come out of `read`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from swarm.ids import Digest
from swarm.record import PeerRecord

__all__ = ["Directory"]


class Directory(ABC):
    @abstractmethod
    async def announce(self, record: PeerRecord) -> None:
        """Make `record` known until it expires; a later `issued` replaces it. Raises NetworkError if nobody took it."""

    @abstractmethod
    async def read(self, model: Digest | None = None) -> tuple[PeerRecord, ...]:
        """Every live record of `model`, or of all models, the newest of each peer, at most a few seconds old."""

    @abstractmethod
    def watch(self, model: Digest | None, period: float) -> AsyncIterator[tuple[PeerRecord, ...]]:
        """What `read` gives, again every `period` seconds; a failed read is skipped."""

    @abstractmethod
    async def close(self) -> None: ...
