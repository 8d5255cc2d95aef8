"""Who may use how many pages of KV. What is promised never exceeds the pool, so a promised page is always there."""

from peers.pages import PagePool
from swarm.ids import SessionId

__all__ = ["Leases"]


class Leases:
    """The promises, in pages. What a session uses counts against its promise, not twice."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._promised: dict[SessionId, int] = {}
        self._total = 0

    @property
    def free(self) -> int:
        """Pages that are promised to nobody."""
        return self._pool.pages - self._total

    @property
    def free_tokens(self) -> int:
        return self.free * self._pool.page_size

    def promised(self, session: SessionId) -> int:
        """Pages, in all."""
        return self._promised.get(session, 0)

    def raise_to(self, session: SessionId, pages: int) -> bool:
        """Promises at least `pages` in all to the session; False, and nothing changed, when there is no room."""
        more = pages - self._promised.get(session, 0)
        if more > self.free:
            return False
        if more > 0:
            self._set(session, pages)
        return True

    def lower_to(self, session: SessionId, pages: int) -> None:
        """Takes back what the session was promised above `pages`."""
        if session in self._promised:
            self._set(session, min(pages, self._promised[session]))

    def end(self, session: SessionId) -> None:
        self._total -= self._promised.pop(session, 0)

    def _set(self, session: SessionId, pages: int) -> None:
        self._total += pages - self._promised.get(session, 0)
        self._promised[session] = pages
