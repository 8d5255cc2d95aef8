"""How a broken chain is mended: pure reasoning over who lives and where every row stands.

Upstream backup (Hwang et al., "High-Availability Algorithms for Distributed Stream Processing", ICDE 2005, section 3):
every hop keeps what it has sent, so the hop above a hole feeds whoever fills it, and nobody who lived computes again.
The positions that the living hops report are the only truth used: whatever was lost, sent twice or half done, each hop
is sent everything from where it stands, and drops what it already has.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from routing.chains import Hop
from swarm.ids import PeerId, RowId, SessionId, Span
from swarm.messages import Contact, Resend

__all__ = ["Hole", "Leg", "RowGoal", "Wiring", "segments", "wire_up"]


@dataclass(frozen=True, slots=True)
class Leg:
    """One hop of a session's chain, the id it knows the session by, and how many tokens it has of each row."""

    hop: Hop
    session: SessionId
    rows: Mapping[RowId, int] = field(default_factory=dict)

    @property
    def peer(self) -> PeerId:
        return self.hop.contact.peer


@dataclass(frozen=True, slots=True)
class Hole:
    """Blocks that nobody computes any more, and the peers on both sides of them (None: the client)."""

    blocks: Span
    prev: PeerId | None
    next: PeerId | None


@dataclass(frozen=True, slots=True)
class RowGoal:
    """What the client waits for in a row: all `length` tokens computed, outputs delivered from `want` on."""

    length: int
    want: int


@dataclass(frozen=True, slots=True)
class Wiring:
    """What one leg has to be told: its neighbours, what its next hop already has, and what to send that hop again."""

    leg: Leg
    prev: PeerId
    next: Contact | None
    next_session: SessionId | None
    sent: Mapping[RowId, int]
    resend: tuple[Resend, ...]


def segments(chain: Sequence[Leg], living: Collection[SessionId]) -> list[Leg | Hole]:
    """The chain with its dead legs merged into holes, which a planner may cut differently than before."""
    parts: list[Leg | Hole] = []
    for leg in chain:
        if leg.session in living:
            if parts and isinstance(parts[-1], Hole):
                hole = parts.pop()
                assert isinstance(hole, Hole)
                parts.append(Hole(hole.blocks, hole.prev, leg.peer))
            parts.append(leg)
        elif parts and isinstance(parts[-1], Hole):
            hole = parts[-1]
            parts[-1] = Hole(Span(hole.blocks.start, leg.hop.span.end), hole.prev, None)
        else:
            prev = parts[-1] if parts else None
            parts.append(Hole(leg.hop.span, prev.peer if isinstance(prev, Leg) else None, None))
    return parts


def wire_up(
    chain: Sequence[Leg],
    client: Contact,
    goals: Mapping[RowId, RowGoal],
    unreachable: Collection[tuple[PeerId, PeerId]] = frozenset(),
) -> list[Wiring]:
    """What to tell every leg. Pairs in `unreachable` (from, to) talk through the client (star)."""
    wirings = []
    for index, leg in enumerate(chain):
        before = chain[index - 1] if index else None
        after = chain[index + 1] if index + 1 < len(chain) else None
        star_in = before is not None and (before.peer, leg.peer) in unreachable
        star_out = after is not None and (leg.peer, after.peer) in unreachable
        onward = None if after is None else client if star_out else after.hop.contact
        wirings.append(
            Wiring(
                leg=leg,
                prev=client.peer if before is None or star_in else before.peer,
                next=onward,
                next_session=None if after is None or star_out else after.session,
                sent={} if after is None else {row: at for row, at in after.rows.items() if at},
                resend=_resend(leg, after, goals),
            )
        )
    return wirings


def _resend(leg: Leg, after: Leg | None, goals: Mapping[RowId, RowGoal]) -> tuple[Resend, ...]:
    """From where the next hop stands; the last hop, from the first output that the client still waits for."""
    entries = []
    for row in leg.rows:
        goal = goals.get(row)
        if goal is None:
            continue
        start = goal.want if after is None else after.rows.get(row, 0)
        entries.append(Resend(row, start, goal.want))
    return tuple(entries)
