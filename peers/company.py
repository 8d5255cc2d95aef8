"""Who decodes here in one moment, so that sessions go through a hop in few large batches.

A batch of one session takes nearly as long as one of eight (*measured*: 16 and 23 ms over 15 blocks of SmolLM2, fp32).
Left to themselves, sessions drift apart into batches of one and of nearly all. So a busy hop waits, no longer than a
batch takes, until half of those who decode here are together; and where a chain has several hops it takes no more than
half, since then all hops have work.
"""

from collections import OrderedDict
from collections.abc import Callable

from swarm.ids import SessionId

__all__ = ["Company"]

LIVELY = 1.0  # seconds for which a session that came is expected to come again,
LIVELY_BATCHES = 8  # or for so many batches, if they take longer
BUSY = 0.3  # of its time a hop has to compute before it waits for anybody: waits in vain make it idle, and end so
WEIGHT = 0.125  # of the latest batch in what is known of all


class Company:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: OrderedDict[SessionId, float] = OrderedDict()  # when a session last came, oldest first
        self._ended = clock()  # the latest batch
        self._seconds = 0.0  # that a batch takes
        self._share = 0.0  # of the time that goes into batches

    def came(self, session: SessionId) -> None:
        """A step came in."""
        self._seen[session] = self._clock()
        self._seen.move_to_end(session)

    def computed(self, began: float, ended: float) -> None:
        """A batch in which all sessions decoded."""
        took, idle = ended - began, max(0.0, began - self._ended)
        self._seconds += WEIGHT * (took - self._seconds)
        if took + idle > 0:
            self._share += WEIGHT * (took / (took + idle) - self._share)
        self._ended = ended

    def forget(self, session: SessionId) -> None:
        self._seen.pop(session, None)

    @property
    def half(self) -> int:
        """Of the sessions that decode here now; at least 1."""
        oldest = self._clock() - max(LIVELY, LIVELY_BATCHES * self._seconds)
        while self._seen and next(iter(self._seen.values())) < oldest:
            self._seen.popitem(last=False)
        return max(1, -(-len(self._seen) // 2))

    def patience(self, waiting: int, since: float) -> float:
        """Seconds to go on waiting for more than the `waiting` sessions, by who has waited since `since`."""
        if self._share < BUSY or waiting >= self.half:
            return 0.0
        return max(0.0, since + self._seconds - self._clock())
