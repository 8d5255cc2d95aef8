"""Who may open a session at this hop, with which adapters, and what a session that is open may change about itself."""

from collections.abc import Callable, Mapping, Sequence

from peers.changes import Fit
from peers.fits import Fits
from peers.hop_session import HopSession
from peers.hosted import HostedAdapter
from peers.inbox import Inbox
from peers.limits import EngineLimits
from peers.room import Room
from peers.span import BlockSpan
from peers.uploads import Uploads
from swarm.errors import Busy, HopError
from swarm.ids import Digest, PeerId, SessionId
from swarm.messages import FaultCode, Open
from swarm.training import Adapter, AdapterKeys, Missing

__all__ = ["Reception"]


class Reception:
    """`sessions`: those that are open; `hosted`: adapters that whoever asks may use."""

    def __init__(
        self,
        span: BlockSpan,
        model: Digest,
        limits: EngineLimits,
        hosted: Sequence[HostedAdapter],
        sessions: Mapping[SessionId, HopSession],
        room: Room,
        clock: Callable[[], float],
    ) -> None:
        self._span = span
        self._model = model
        self._limits = limits
        self._hosted = {each.digest: each for each in hosted}
        self._uploads = Uploads(limits, {key: own for each in hosted for key, own in each.blocks.items()})
        self._fits = Fits(span.fit, limits)
        self._sessions = sessions
        self._room = room
        self._clock = clock

    def admit(self, sender: PeerId, message: Open) -> HopSession | Missing:
        """The new session, or which adapters it has to send first. Raises HopError or Busy."""
        self._check(sender, message)
        keys = self._keys(message)
        if lacking := self._uploads.lacking(sender, message.session, keys):
            return Missing(message.session, 0, lacking)
        fits = self._fitted(sender, keys)
        self._room.lease(message.session, sender, message.lease)
        inbox = Inbox(self._limits.inbox_frames, self._limits.inbox_bytes)
        return HopSession.opened(sender, message, keys, fits, self._span.cache, inbox, self._clock())

    def change(self, session: HopSession, message: Open) -> None:
        """Another lease for a session that is open. Raises HopError or Busy."""
        if message.model != self._model or message.hop != session.hop:
            text = f"this session is open for blocks {session.hop} of model {self._model}"
            raise HopError(FaultCode.REFUSED, text)
        if self._keys(message) != session.adapters:
            raise HopError(FaultCode.REFUSED, "a session keeps its adapters: open another one to change them")
        if message.lease > session.lease:
            self._room.check(message.lease)
            self._room.lease(session.id, session.owner, message.lease)
        session.lease = message.lease
        self._room.settle(session)

    def expects(self, sender: PeerId, message: Adapter) -> bool:
        """Whether it is an adapter for a session that is about to be opened."""
        return self._uploads.expects(sender, message)

    def take(self, sender: PeerId, message: Adapter) -> None:
        """One that was expected. Raises HopError or Busy; then the session has to begin anew."""
        used = {(session.owner, key) for session in self._sessions.values() for _, key in session.adapters}
        try:
            self._uploads.take(sender, message, used)
        except (HopError, Busy):
            self._uploads.forget(message.session)
            raise

    def forget(self, session: SessionId) -> None:
        """It will not be opened."""
        self._uploads.forget(session)

    def gone(self, peer: PeerId) -> None:
        self._uploads.gone(peer)

    def _check(self, sender: PeerId, message: Open) -> None:
        """Whether a session can be opened, its adapters and room for it aside. Raises HopError or Busy."""
        limits = self._limits
        if message.model != self._model:
            raise HopError(FaultCode.REFUSED, f"this peer serves model {self._model}, not {message.model}")
        if message.hop not in self._span.blocks:
            raise HopError(FaultCode.REFUSED, f"this peer holds blocks {self._span.blocks}, not {message.hop}")
        self._room.check(message.lease)
        if len(self._sessions) >= limits.max_sessions:
            raise Busy(f"all {limits.max_sessions} sessions of this peer are taken", limits.retry_seconds)
        if sum(s.owner == sender for s in self._sessions.values()) >= limits.max_sessions_per_owner:
            text = f"a client may have {limits.max_sessions_per_owner} sessions here"
            raise Busy(text, limits.retry_seconds)

    def _keys(self, message: Open) -> AdapterKeys:
        """What a session's blocks here are changed by. Raises HopError for an adapter that is not hosted here."""
        if message.hosted is None:
            return message.own_adapters
        if message.hosted not in self._hosted:
            text = f"this peer does not host the adapter {message.hosted}: ask one that does, or load it yourself"
            raise HopError(FaultCode.REFUSED, text)
        return self._hosted[message.hosted].within(message.hop)

    def _fitted(self, owner: PeerId, keys: AdapterKeys) -> tuple[Fit, ...]:
        """What adapters that are here do to blocks. Raises HopError when they don't fit them, or Busy."""
        return tuple(self._fits.of(block, key, self._uploads.get(owner, key)) for block, key in keys)
