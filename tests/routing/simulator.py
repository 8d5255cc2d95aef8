"""A swarm in simulated time whose peers move as `routing.moves` says, each by a view that is some seconds old."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from routing.moves import Plan, plan_moves, reconsider
from routing.placement import place
from routing.view import View
from swarm.ids import PeerId, Span
from swarm.record import PeerRecord, PeerState
from tests.routing.records import record, view

TICK = 30.0  # s between snapshots of what is announced
OLDEST = 3  # a peer sees one of so many latest snapshots
LAPSE = 60.0  # s for which a peer that died is still announced
LOADING = 60.0  # s from a decision to move until the new span is online
INTERVAL = 120.0  # s on average until a peer reconsiders


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    size: int  # blocks that it has memory for
    work: float  # rows per second through one block
    settled: bool = False  # its user chose its blocks


@dataclass(slots=True)
class Story:
    """What happened."""

    moves: list[float] = field(default_factory=list)  # when a peer decided to
    reasons: list[str] = field(default_factory=list)
    weakest: list[tuple[float, float]] = field(default_factory=list)  # from when on, rows/s of online peers
    uncovered: int = 0  # moves that left a block without an online peer

    def reached(self, rate: float) -> float:
        """When the weakest block came to `rate` for good."""
        below = [i for i, (_, weakest) in enumerate(self.weakest) if weakest < rate]
        return self.weakest[below[-1] + 1][0] if below else 0.0

    def moved_between(self, start: float, end: float) -> int:
        return sum(start <= time < end for time in self.moves)


class Simulation:
    def __init__(self, num_blocks: int, members: Iterable[Member], *, seed: int, wobble: float = 0.0) -> None:
        """Everyone holds the first blocks. `wobble`: by what share the announced rates change from one to the next."""
        self.num_blocks = num_blocks
        self.story = Story()
        self.now = 0.0
        self._wobble = wobble
        self._random = random.Random(seed)
        self._members: dict[PeerId, Member] = {}
        self._records: dict[PeerId, PeerRecord] = {}
        self._lapsing: dict[PeerId, float] = {}
        self._online: list[dict[PeerId, float]] = [{} for _ in range(num_blocks)]
        self._events: list[tuple[float, str, str]] = []
        self._views: list[View] = []
        self._plans: dict[int, Plan] = {}
        self._wanting: set[PeerId] = set()
        for member in members:
            self._begin(member, Span(0, member.size), PeerState.ONLINE)
        self._tick()

    def run(self, seconds: float) -> Story:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, what, name = heappop(self._events)
            self._happen(what, PeerId(name))
        self.now = end
        return self.story

    def join(self, member: Member) -> None:
        size = min(member.size, self.num_blocks)
        span = place(self._views[-1], capacity=size, block_rate=member.work, peer=PeerId(member.name)).span
        self._begin(member, span, PeerState.JOINING)
        self._later(LOADING, "online", PeerId(member.name))

    def die(self, names: Iterable[str]) -> None:
        for name in map(PeerId, names):
            del self._members[name]
            self._leave(name)
            self._lapsing[name] = self.now + LAPSE
        self._note()

    @property
    def members(self) -> Sequence[Member]:
        return tuple(self._members.values())

    @property
    def weakest(self) -> float:
        """Rows per second of the weakest block, of online peers, as it is."""
        return min(sum(held.values()) for held in self._online)

    def holders(self, block: int) -> frozenset[PeerId]:
        return frozenset(self._online[block])

    # --- events -------------------------------------------------------------------------------------------------

    def _happen(self, what: str, name: PeerId) -> None:
        if what == "tick":
            self._tick()
        elif name not in self._members:
            return
        elif what == "online":
            self._come(name)
        else:
            self._later(INTERVAL * self._random.uniform(0.5, 1.5), "reconsider", name)
            if self._records[name].state is PeerState.ONLINE and not self._members[name].settled:
                self._reconsider(name)

    def _tick(self) -> None:
        gone = [name for name, until in self._lapsing.items() if until <= self.now]
        for name in gone:
            del self._lapsing[name], self._records[name]
        records = [self._announced(record) for record in self._records.values()]
        seen = view(self.num_blocks, records)
        same = bool(self._views) and self._views[-1].peers == seen.peers
        self._views = [*self._views, self._views[-1] if same else seen][-OLDEST:]
        self._plans = {key: plan for key, plan in self._plans.items() if key in map(id, self._views)}
        self._later(TICK, "tick")

    def _announced(self, record: PeerRecord) -> PeerRecord:
        if not self._wobble:
            return record
        return replace(record, throughput=record.throughput * self._random.uniform(1 - self._wobble, 1 + self._wobble))

    def _reconsider(self, name: PeerId) -> None:
        own = self._records[name]
        seen = self._random.choice(self._views)
        known = seen.get(name)
        if known is None or (known.span, known.state) != (own.span, own.state):
            return  # too old a view to decide by
        plan = self._plans.get(id(seen)) or plan_moves(seen)
        self._plans[id(seen)] = plan
        decision = reconsider(seen, name, plan=plan)
        before = name in self._wanting
        self._wanting.discard(name)
        if decision.span == own.span:
            return
        if not before:
            self._wanting.add(name)  # it has to be wanted twice in a row
            return
        self.story.moves.append(self.now)
        self.story.reasons.append(decision.reason)
        self._leave(name)
        self.story.uncovered += any(not self._online[block] for block in own.span)
        self._note()
        self._records[name] = replace(own, span=decision.span, state=PeerState.JOINING)
        self._later(LOADING, "online", name)

    # --- helpers ------------------------------------------------------------------------------------------------

    def _begin(self, member: Member, span: Span, state: PeerState) -> None:
        name = PeerId(member.name)
        self._members[name] = member
        self._records[name] = record(
            name, span.start, span.end, num_blocks=self.num_blocks, throughput=member.work / len(span), state=state
        )
        self._later(INTERVAL * self._random.uniform(0.0, 1.5), "reconsider", name)
        if state is PeerState.ONLINE:
            self._come(name)

    def _come(self, name: PeerId) -> None:
        record = self._records[name] = replace(self._records[name], state=PeerState.ONLINE)
        for block in record.span:
            self._online[block][name] = record.throughput
        self._note()

    def _leave(self, name: PeerId) -> None:
        for block in self._records[name].span:
            self._online[block].pop(name, None)

    def _later(self, seconds: float, what: str, name: str = "") -> None:
        heappush(self._events, (self.now + seconds, what, name))

    def _note(self) -> None:
        self.story.weakest.append((self.now, self.weakest))
