"""What a session tells whoever watches it: the chain it uses, and what became of it."""

from collections.abc import Callable
from dataclasses import dataclass

from routing.chains import Hop
from swarm.ids import PeerId

__all__ = ["ChainChanged", "Event", "Excluded", "Observer", "PeerLost", "Step", "Waiting", "both"]


@dataclass(frozen=True, slots=True)
class ChainChanged:
    """The session runs on `hops` now. `seconds`: how long it took to get there; `lost`: peers that failed and were
    replaced; `left`: peers that were replaced while they still served, since they leave."""

    hops: tuple[Hop, ...]
    lost: tuple[PeerId, ...]
    seconds: float
    reason: str
    left: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A hop failed; the session looks for another."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Excluded:
    """Audits found that a peer computes something else than others; this client asks it no more."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nobody can take the session now; it asks again in `seconds`."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """One step is done. `seconds`: from sending to the last output; `trace`: (queue ms, compute ms) of each hop."""

    seconds: float
    tokens: int
    trace: tuple[tuple[float, float], ...]


Event = ChainChanged | PeerLost | Excluded | Waiting | Step
Observer = Callable[[Event], None]


def both(one: Observer | None, other: Observer | None) -> Observer | None:
    """Whoever of the two is there."""
    if one is None or other is None:
        return one or other

    def tell(event: Event) -> None:
        one(event)
        other(event)

    return tell
