"""What peers announce about themselves: small, signed, short-lived."""

from dataclasses import dataclass
from enum import StrEnum

from swarm.ids import Digest, PeerId, Span
from swarm.messages import Contact

__all__ = ["MOST_NEAR", "Announced", "PeerRecord", "PeerState", "Presence"]

MOST_NEAR = 8  # neighbours that a record names


class PeerState(StrEnum):
    JOINING = "joining"
    ONLINE = "online"
    DRAINING = "draining"
    PAUSED = "paused"
    STANDBY = "standby"  # ready to serve its span, and serving nothing
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """One peer's span of one model. `expires` is Unix time; a record is dead after it."""

    contact: Contact
    model: Digest
    model_name: str
    num_blocks: int  # of the whole model
    span: Span
    state: PeerState
    throughput: float  # decode rows per second through the whole span, measured
    prefill: float  # prompt tokens per second through the whole span, measured
    cache_left: int  # tokens of KV that can still be reserved
    precision: str
    version: str
    public_name: str
    reason: str  # why this span, in a sentence
    queue: int  # tokens waiting or computed, on average over the seconds before it was announced
    issued: float  # Unix time
    expires: float
    adapters: tuple[tuple[str, str], ...] = ()  # hosted ones: the name that the peer gives it, and its digest
    trains: bool = True  # gives some of its time to fine-tuning
    fixed: bool = False  # stays at its span whatever the swarm needs: its user said so
    near: tuple[tuple[PeerId, float], ...] = ()  # who may come after it in a chain, and s one way; MOST_NEAR at most

    def hosts(self, adapter: str) -> bool:
        """Whether it says that it hosts the adapter with this digest."""
        return any(digest == adapter for _, digest in self.adapters)

    @property
    def peer(self) -> PeerId:
        return self.contact.peer


@dataclass(frozen=True, slots=True)
class Presence:
    """Where a member of a run can be dialled. `run`: the id of a key that all its members hold, and nobody else."""

    contact: Contact
    run: PeerId
    issued: float  # Unix time
    expires: float

    @property
    def peer(self) -> PeerId:
        return self.contact.peer


Announced = PeerRecord | Presence
