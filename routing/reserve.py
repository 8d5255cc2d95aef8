"""What one standby does as time passes: when it goes to serve, and when it rests again. Time comes in, as seconds.

`look` is given a view every few seconds while the peer stands by, `rests` while it serves.
"""

from collections.abc import Collection
from dataclasses import dataclass

from routing.placement import REPLICAS
from routing.standby import Call, called, may_rest, rests_in
from routing.view import View
from swarm.ids import PeerId
from swarm.record import PeerState

__all__ = ["Reserve", "ReserveTimes"]


@dataclass(frozen=True, slots=True)
class ReserveTimes:
    """Seconds. `round`: what those of one round have to notice that they are called and to say that they come, before
    those of the next go. `joining`: after which a peer that has not joined yet is not waited for. `calm`: for how long
    a peer must not have been needed before it rests. `slot`: one peer at most of those of a block rests in each."""

    round: float = 10.0
    joining: float = 30.0
    calm: float = 180.0
    slot: float = 30.0


class Reserve:
    """Of the peer `peer`, which sees to it that each block that it is ready for has `wanted` peers."""

    def __init__(self, peer: PeerId, *, wanted: int = REPLICAS, times: ReserveTimes) -> None:
        self.peer = peer
        self.wanted = wanted
        self._times = times
        self._lacking: dict[int, float] = {}  # since when a block has had too few peers
        self._joining: dict[PeerId, float] = {}  # since when a peer has been seen joining
        self._spare: float | None = None  # since when this peer, serving, has not been needed

    def look(self, view: View, now: float, *, gone: Collection[PeerId] = ()) -> Call | None:
        """Why to serve at once, while standing by. `gone`: peers that don't answer, whatever they announced."""
        self._spare = None
        call = called(view, self.peer, wanted=self.wanted, without={*gone, *self._slow(view, now)})
        blocks = () if call is None else call.blocks
        self._lacking = {block: self._lacking.get(block, now) for block in blocks}
        if call is None or now < min(self._lacking.values()) + call.round * self._times.round:
            return None
        return call

    def rests(self, view: View, now: float) -> bool:
        """Whether to stand by again, while serving. `now`: here as Unix time, which peers have in common."""
        self._lacking.clear()
        if not may_rest(view, self.peer, wanted=self.wanted):
            self._spare = None
            return False
        self._spare = now if self._spare is None else self._spare
        slot, into = divmod(now, self._times.slot)
        early = into < self._times.slot / 2  # who rests later might not be seen by the one whose slot is next
        return early and now >= self._spare + self._times.calm and rests_in(view, self.peer, int(slot))

    def _slow(self, view: View, now: float) -> list[PeerId]:
        """Those that have been joining for so long that they may be downloading still."""
        joining = [record.peer for record in view.peers if record.state is PeerState.JOINING]
        self._joining = {peer: self._joining.get(peer, now) for peer in joining}
        return [peer for peer, since in self._joining.items() if now >= since + self._times.joining]
