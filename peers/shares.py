"""Whose room is taken back when somebody else has none: of clients who hold more than an equal share, what they have
been promised and don't use, and then the sessions that they leave idle."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swarm.ids import PeerId, SessionId

__all__ = ["Held", "take_back"]

MOST_SHARES = 8  # ids cost nothing: however many come, who keeps within such a share loses nothing
IDLE = 10.0  # seconds without a step, from which on a session may have to go


@dataclass(frozen=True, slots=True)
class Held:
    """What one session holds: of `promised` pages it uses some; `idle`: seconds since its last step."""

    session: SessionId
    owner: PeerId
    promised: int
    used: int
    idle: float


def take_back(held: Iterable[Held], asker: PeerId, more: int, lacking: int, pages: int) -> Sequence[tuple[Held, int]]:
    """Which sessions have to do with how many pages, 0 for those that have to go, so that `lacking` pages become free
    for `asker`, who wants `more`. Empty where that is not to be: no client gets more than an equal share of all `pages`
    this way, and none is left with less."""
    sessions = list(held)
    total = Counter[PeerId]({asker: 0})
    for each in sessions:
        total[each.owner] += each.promised
    share = pages // min(MOST_SHARES, len(total))
    if total[asker] + more > share:
        return ()
    taken: dict[Held, int] = {}
    surplus = {owner: count - share for owner, count in total.items()}
    by_size = sorted(sessions, key=lambda each: -surplus[each.owner])
    by_age = sorted(by_size, key=lambda each: -each.idle)
    for each in by_size:
        spare = max(0, min(each.promised - each.used, surplus[each.owner], lacking))
        if spare:
            taken[each] = each.promised - spare
            surplus[each.owner] -= spare
            lacking -= spare
    for each in by_age:
        if lacking > 0 and each.idle >= IDLE and surplus[each.owner] > 0 and each.used:
            freed = taken.get(each, each.promised)
            taken[each] = 0
            surplus[each.owner] -= freed
            lacking -= freed
    return list(taken.items()) if lacking <= 0 else ()
