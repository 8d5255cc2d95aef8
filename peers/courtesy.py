"""Who has to give way: of those who want the device at one time, who has used much of it to those who have used little.

A client is a peer, however many sessions it has. While several of them compute here each one's use is noted, and
forgotten by half every minute. Who is `AHEAD` seconds ahead of whoever has used least is held back: its work may make
that one's steps longer by `STRETCH`, and a pass of its own begins only where it ends before that one usually comes
again, or when that one is late. So nobody can slow others down for long by asking for much; two that ask for much share
alike.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from peers.pace import Pace
from swarm.ids import PeerId, SessionId

__all__ = ["Courtesy"]

AHEAD = 3.0  # seconds of the device
STRETCH = 0.1  # of the time from one step of a session to the next
HALF_LIFE = 60.0  # seconds
LIVELY = 1.0  # seconds for which who asked is expected to ask again
LATE = 4.0  # usual deviations after its usual time that who asked is late, as a timeout of TCP (RFC 6298),
LEAST_LATE, MOST_LATE = 0.25, 2.0  # passes that this is at least and at most
UNSEEN = 0.25  # of a pass: what is heard of so soon after it has probably come meanwhile
WEIGHT = 0.125  # of the latest in what is known of all
KNOWN = 1024  # peers, and sessions


@dataclass(slots=True)
class _Client:
    """`used`: seconds of the device, as of `at`. `cycle`: from one step of a session to its next; `gap`: from what it
    was sent last, at `ended`, to what it asks then, and by how much that deviates."""

    used: float
    at: float
    came: float
    cycle: float | None = None
    gap: float | None = None
    deviation: float = 0.0
    ended: float | None = None

    def asked(self, after: float) -> None:
        """So many seconds after it was sent something."""
        if self.gap is not None:
            self.deviation = _smooth(self.deviation, abs(after - self.gap))
        self.gap = _smooth(self.gap, after)


class Courtesy:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pace = Pace()
        self._clients: OrderedDict[PeerId, _Client] = OrderedDict()  # who came longest ago is first
        self._came: OrderedDict[SessionId, float] = OrderedDict()
        self._latest = 0.0  # seconds of a pass, or of other work,
        self._ended = clock()  # which ended then
        self._credit = 0.0  # tokens of those held back that may be in the passes of others

    # --- what happens -------------------------------------------------------------------------------------------------

    def came(self, owner: PeerId, session: SessionId) -> None:
        """A step came in."""
        now = self._clock()
        client = self._clients.get(owner)
        if client is None:
            client = self._clients[owner] = _Client(0.0, now, now)
        self._clients.move_to_end(owner)
        before = self._came.get(session)
        if before is not None and now - before < LIVELY:
            client.cycle = _smooth(client.cycle, now - before)
            if client.ended is not None:
                client.asked(self._after(client, client.ended))
        client.came, client.ended = now, None
        self._came[session] = now
        self._came.move_to_end(session)
        if len(self._clients) > KNOWN:
            self._clients.popitem(last=False)
        if len(self._came) > KNOWN:
            self._came.popitem(last=False)

    def computed(self, tokens: Mapping[PeerId, int], seconds: float) -> None:
        """A pass with so many tokens of each took so long."""
        total, now = sum(tokens.values()), self._clock()
        self._pace.add(total, seconds)
        self.worked(seconds)
        for owner, own in tokens.items():
            self.spent(owner, seconds * own / total)
            if owner in self._clients:
                self._clients[owner].ended = now

    def worked(self, seconds: float) -> None:
        """Nothing was heard of for so long, until now."""
        self._latest, self._ended = seconds, self._clock()

    def spent(self, owner: PeerId, seconds: float) -> None:
        """Of this thread, for one client. Who is alone does not have to account for it."""
        client = self._clients.get(owner)
        if client is not None and len(self._lively()) > 1:
            client.used = self._used(client) + seconds
            client.at = self._clock()

    # --- what follows -------------------------------------------------------------------------------------------------

    def held_back(self, waiting: Iterable[PeerId]) -> frozenset[PeerId]:
        """Who has to give way now; `waiting` are those with work here."""
        now = self._clock()
        for owner in waiting:
            if owner in self._clients:
                self._clients[owner].came = now
                self._clients.move_to_end(owner)
        lively = self._lively()
        if len(lively) < 2:
            return frozenset()
        used = {owner: self._used(client) for owner, client in lively.items()}
        least = min(used.values())
        return frozenset(owner for owner, seconds in used.items() if seconds > least + AHEAD)

    @property
    def pass_seconds(self) -> float:
        """What a pass takes at least; 0 before the first."""
        return self._pace.of(1)

    def seconds(self, held: Iterable[PeerId]) -> float:
        """By how much those held back may make a step of the others longer."""
        cycles = [client.cycle for client in self._others(held) if client.cycle is not None]
        return STRETCH * min(cycles, default=self._pace.of(1))

    def room(self, held: Iterable[PeerId], *, together: bool) -> int:
        """How many tokens of those held back may be in the next pass; `together` with others, of whom some are there,
        or on their own, when it is one at least."""
        each, seconds = self._pace.each, self.seconds(held)
        if not each:
            return 1
        if not together:
            return max(1, int((seconds - self._pace.of(1)) / each))
        self._credit = min(self._credit, 1.0) + seconds / each
        return int(self._credit)

    def taken(self, tokens: int) -> None:
        """Of the room in a pass with others."""
        self._credit -= tokens

    def patience(self, held: Iterable[PeerId]) -> float:
        """Seconds for which a pass of those held back alone still has to wait: others would have to wait for it."""
        others = self._others(held)
        now, most = self._clock(), max(self._pace.of(1), self.seconds(held))
        return max([now, *(self._until(client, now + most) for client in others)]) - now

    @property
    def alone(self) -> bool:
        """Whether nobody has asked for a while."""
        return not self._lively()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _after(self, client: _Client, ended: float) -> float:
        """Seconds after `ended` that who was sent something then asks now. What comes during work is heard of after it,
        and is taken to have come in its middle, or when it became late, if that was before."""
        now = self._clock()
        if not (self._ended > ended and now - self._ended < UNSEEN * self._latest):
            return now - ended
        middle = max(0.0, self._ended - self._latest / 2 - ended)
        return middle if client.gap is None else min(middle, client.gap + self._margin(client))

    def _until(self, client: _Client, end: float) -> float:
        """When a pass may begin that would end at `end`, so that `client` does not have to wait for it: at any time, if
        it ends before that one usually asks again, or else when that one is late."""
        one = self._pace.of(1)
        if client.ended is None:
            return 0.0
        if client.gap is None:
            return client.ended + one
        usual = client.ended + client.gap
        if end <= usual:
            return 0.0
        return usual + self._margin(client)

    def _margin(self, client: _Client) -> float:
        """Seconds after its usual time that it is late."""
        one = self._pace.of(1)
        return min(max(LATE * client.deviation, LEAST_LATE * one), MOST_LATE * one)

    def _lively(self) -> dict[PeerId, _Client]:
        oldest = self._clock() - LIVELY - 2 * self._latest  # who is in a long pass can't ask again
        found: dict[PeerId, _Client] = {}
        for owner in reversed(self._clients):
            if self._clients[owner].came < oldest:
                break
            found[owner] = self._clients[owner]
        return found

    def _others(self, held: Iterable[PeerId]) -> list[_Client]:
        kept = set(held)
        return [client for owner, client in self._lively().items() if owner not in kept]

    def _used(self, client: _Client) -> float:
        return client.used * float(0.5 ** ((self._clock() - client.at) / HALF_LIFE))


def _smooth(known: float | None, latest: float) -> float:
    return latest if known is None else known + WEIGHT * (latest - known)
