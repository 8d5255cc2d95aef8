"""The KV pages of all sessions of a hop: how many each may use, and who has to give way when there are no more."""

from collections.abc import Callable, Mapping

from peers.hop_session import HopSession
from peers.leases import Leases
from peers.limits import EngineLimits
from peers.pages import PagePool
from peers.shares import Held, take_back
from swarm.errors import Busy, HopError
from swarm.ids import PeerId, SessionId
from swarm.messages import FaultCode

__all__ = ["Room"]


class Room:
    """`sessions`: those that are open; `end` frees one of them, which is told why."""

    def __init__(
        self,
        pool: PagePool,
        limits: EngineLimits,
        sessions: Mapping[SessionId, HopSession],
        end: Callable[[HopSession, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._sessions = sessions
        self._end = end
        self._clock = clock
        self._leases = Leases(pool)

    @property
    def free_tokens(self) -> int:
        return self._leases.free_tokens

    def check(self, lease: int) -> None:
        """Raises HopError for a lease of tokens that nobody gets here."""
        most = min(self._limits.max_lease, self._pool.tokens)
        if lease > most:
            raise HopError(FaultCode.REFUSED, f"a lease of {lease} tokens; this peer gives {most} at most")

    def lease(self, session: SessionId, owner: PeerId, tokens: int) -> None:
        """Promises room for `tokens` in all to a session. Raises Busy."""
        if not self._raise_to(session, owner, self._pool.pages_for(tokens)):
            raise self._full(f"{tokens} tokens are wanted in all and {self.free_tokens} are free")

    def promise(self, session: HopSession, pages: int) -> None:
        """Extends the lease where `pages` more than are used go beyond it. Raises Busy."""
        if not self._raise_to(session.id, session.owner, session.pages + pages):
            need = pages * self._pool.page_size
            raise self._full(
                f"no room: {need} more tokens go beyond the lease of {session.lease}, and {self.free_tokens} are free"
            )

    def settle(self, session: HopSession) -> None:
        """Takes back what was promised beyond the lease and is no longer used."""
        self._leases.lower_to(session.id, max(self._pool.pages_for(session.lease), session.pages))

    def leave(self, session: SessionId) -> None:
        """It is closed, and its pages are free."""
        self._leases.end(session)

    def _full(self, text: str) -> Busy:
        return Busy(text, self._limits.retry_seconds)

    def _raise_to(self, session: SessionId, owner: PeerId, pages: int) -> bool:
        """Promises `pages` in all; where there is no room, at the cost of who has too much and does not use it."""
        if self._leases.raise_to(session, pages):
            return True
        more = pages - self._leases.promised(session)
        held = [self._held(each, asking=session) for each in self._sessions.values()]
        for one, kept in take_back(held, owner, more, more - self._leases.free, self._pool.pages):
            self._take(self._sessions[one.session], kept)
        return self._leases.raise_to(session, pages)

    def _held(self, session: HopSession, asking: SessionId) -> Held:
        """Who is at work, and for whom room is made, is left alone."""
        promised = self._leases.promised(session.id)
        if session.waits or session.id == asking:
            return Held(session.id, session.owner, promised, promised, 0.0)
        return Held(session.id, session.owner, promised, session.pages, self._clock() - session.worked)

    def _take(self, session: HopSession, kept: int) -> None:
        """Leaves `kept` pages to a session that was promised more; with none of those that it uses, it has to go."""
        if kept or not session.pages:
            session.lease = min(session.lease, kept * self._pool.page_size)
            self._leases.lower_to(session.id, kept)
        else:
            self._end(session, "others needed the room of this session, which rested")
