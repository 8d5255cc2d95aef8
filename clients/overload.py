"""Noticing that a hop has become much slower than others would be, and moving the session there.

What counts is what was measured. A hop says how long a step waited and was computed there; the time that no hop
accounts for, beyond what even long ways take, is held against all of them alike. So a hop that says nothing, or lies,
gains no more by it than one that is far away.

Others are only predicted, so a move is for a gain that no prediction is wrong by, seen for some time. A session then
waits a little, never twice the same: of all that are on that peer some go first, and if that helps the others stay. It
does not come back for long, and each further move takes longer to come.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from clients.chain import Chain, Parting
from clients.client import Client
from clients.repair import Repair
from fault.mend import Leg
from swarm.ids import PeerId, SessionId

__all__ = ["Overload"]

_log = logging.getLogger(__name__)

STEPS = 8  # that are looked at together,
SECONDS = 2.0  # and no fewer than are done in so long
MOST_TOKENS = 64  # of a step that counts: prompts are another matter
LOOKS = 3  # in a row that speak against a hop before anything is done
LOADED = 2.0  # times slower than if it were idle: below that nobody else is looked for
FACTOR = 3.0  # times slower than others are expected to be
LEAST = 0.05  # s that a move has to gain with each step
DITHER = 6.0  # s within which a session moves, some time
REST = 30.0  # s at least between two moves; doubles
REST_MOST = 3600.0
AWAY = 900.0  # s for which a session does not come back
WAY = 0.2  # s between two places of a chain, which nobody has to account for


@dataclass(slots=True)
class _Looked:
    """Steps of one chain."""

    chain: tuple[SessionId, ...]
    since: float
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    said: tuple[float, ...] = ()  # s, by each hop


class Overload:
    """One session's. `move`: hand the session over from these legs to others."""

    def __init__(
        self, client: Client, chain: Chain, repair: Repair, *, move: Callable[[Parting], None], dice: Random
    ) -> None:
        self._client = client
        self._chain = chain
        self._repair = repair
        self._move = move
        self._dice = dice
        self._clock = asyncio.get_running_loop().time
        self._looked = _Looked((), 0.0)
        self._against = 0  # looks in a row
        self._due = 0.0
        self._moves = 0
        self._rests = 0.0  # until then
        self._left: dict[PeerId, float] = {}  # until when

    def stepped(self, seconds: float, tokens: int) -> None:
        """A step is done, by the chain as it is."""
        now, trace, depths = self._clock(), self._chain.trace, self._chain.depths
        legs = self._chain.legs
        if len(trace) != len(legs):  # something was sent again
            return
        for leg, depth in zip(legs, depths, strict=False):
            if depth is not None:
                self._client.loads.heard(leg.peer, depth, now)
        sessions = tuple(leg.session for leg in legs)
        if sessions != self._looked.chain:
            self._looked = _Looked(sessions, now, said=(0.0,) * len(legs))
        if tokens > MOST_TOKENS:
            return
        looked = self._looked
        looked.steps, looked.tokens, looked.seconds = looked.steps + 1, looked.tokens + tokens, looked.seconds + seconds
        looked.said = tuple(
            a + (queue + compute) / 1000 for a, (queue, compute) in zip(looked.said, trace, strict=True)
        )
        if looked.steps >= STEPS and now - looked.since >= SECONDS:
            self._looked = _Looked(sessions, now, said=(0.0,) * len(legs))
            self._look(legs, looked)

    # --- inside ---

    def _look(self, legs: Sequence[Leg], looked: _Looked) -> None:
        took = self._took(looked)
        tokens = round(looked.tokens / looked.steps)
        times = [self._client.measured(leg.hop, seconds, tokens) for leg, seconds in zip(legs, took, strict=True)]
        now = self._clock()
        if now < self._rests:
            return
        slow = [
            leg
            for leg, seconds, slower in zip(legs, took, times, strict=True)
            if slower > LOADED and self._is_slow(leg, seconds, tokens, now)
        ]
        self._against = self._against + 1 if slow else 0
        if self._against == LOOKS:
            self._due = now + DITHER * self._dice.random()
        if slow and self._against >= LOOKS and now >= self._due:
            self._leave(slow, sum(took[legs.index(leg)] for leg in slow), tokens, now)

    def _took(self, looked: _Looked) -> list[float]:
        """Seconds that each hop took of a step."""
        whole = looked.seconds / looked.steps
        said = [each / looked.steps for each in looked.said]
        if sum(said) > whole:  # it can't have been more
            return [each * whole / sum(said) for each in said]
        rest = whole - sum(said) - WAY * (len(said) + 1)
        return [each + max(0.0, rest) / len(said) for each in said]

    def _is_slow(self, leg: Leg, seconds: float, tokens: int, now: float) -> bool:
        self._left = {peer: until for peer, until in self._left.items() if until > now}
        others = self._repair.others((leg,), tuple(self._left))
        if others is None:
            return False
        expected = sum((hop.step(tokens - 1) for hop in others), 0.0)
        return seconds > FACTOR * expected and seconds - expected > LEAST

    def _leave(self, slow: Sequence[Leg], seconds: float, tokens: int, now: float) -> None:
        names = " and ".join(leg.peer for leg in slow)
        _log.info("peers %s take %.3g s a step, so this session looks for others", names, seconds)
        self._rests = now + min(REST_MOST, REST * 2.0**self._moves) * (1 + self._dice.random())
        self._moves, self._against = min(self._moves + 1, 30), 0
        away = tuple(self._left)
        for leg in slow:
            self._left[leg.peer] = now + AWAY
        most = seconds / FACTOR
        self._move(Parting(tuple(slow), f"peer {names} is overloaded", away, lambda hop: hop.step(tokens - 1), most))
