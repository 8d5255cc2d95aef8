"""Who is called when blocks lack peers, and who rests: by single views, and by a swarm in simulated time."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from operator import is_not

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.reserve import Reserve, ReserveTimes
from routing.standby import called, may_rest, prepare, rests_in, watched
from routing.view import View
from swarm.ids import PeerId, Span
from swarm.record import PeerRecord, PeerState
from tests.routing.records import record, view, views

TICK = 0.5  # s
LOOK = 3.0  # s between two looks of one standby
TIMES = ReserveTimes()


def ready(name: str, start: int, end: int, *, num_blocks: int = 8, throughput: float = 10.0) -> PeerRecord:
    return record(name, start, end, num_blocks=num_blocks, throughput=throughput, state=PeerState.STANDBY)


def serving(name: str, start: int, end: int, *, num_blocks: int = 8) -> PeerRecord:
    return record(name, start, end, num_blocks=num_blocks)


def rounds(seen: View, **options: int) -> dict[PeerId, int]:
    calls = {r.peer: called(seen, r.peer, **options) for r in seen.peers if r.state is PeerState.STANDBY}
    return {peer: call.round for peer, call in calls.items() if call is not None}


# --- by one view -----------------------------------------------------------------------------------------------------


def test_nobody_is_called_while_every_block_has_its_peers() -> None:
    seen = view(8, [serving("a", 0, 8), serving("b", 0, 8), ready("s", 0, 8)])
    assert rounds(seen) == {}
    assert rounds(seen, wanted=3) == {PeerId("s"): 0}


def test_each_round_has_as_many_as_are_needed() -> None:
    seen = view(8, [serving("a", 0, 4), *(ready(f"s{i}", 4, 8) for i in range(20))])
    assert Counter(rounds(seen, wanted=3).values()) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3, 6: 2}


def test_who_serves_blocks_without_peers_is_called_first_and_then_the_faster() -> None:
    seen = view(8, [serving("a", 0, 6), ready("thin", 0, 4), ready("slow", 4, 8), ready("fast", 4, 8, throughput=20.0)])
    assert rounds(seen, wanted=1) == {PeerId("fast"): 0, PeerId("slow"): 1}


def test_two_that_together_serve_what_is_lacking_are_called_together() -> None:
    seen = view(8, [ready("left", 0, 4), ready("right", 4, 8), ready("middle", 2, 6)])
    assert rounds(seen, wanted=1) == {PeerId("left"): 0, PeerId("right"): 0, PeerId("middle"): 1} or (
        rounds(seen, wanted=1) == dict.fromkeys(map(PeerId, ("left", "middle", "right")), 0)
    )


def test_peer_that_joins_counts_and_one_that_drains_or_is_gone_does_not() -> None:
    joining = record("a", 0, 8, num_blocks=8, state=PeerState.JOINING)
    assert rounds(view(8, [joining, ready("s", 0, 8)]), wanted=1) == {}
    leaving = replace(joining, state=PeerState.DRAINING)
    assert rounds(view(8, [leaving, ready("s", 0, 8)]), wanted=1) == {PeerId("s"): 0}
    seen = view(8, [serving("a", 0, 8), ready("s", 0, 8)])
    call = called(seen, PeerId("s"), wanted=1, without=[PeerId("a")])
    assert call is not None
    assert call.reason == "blocks 0:8 have too few peers"


@given(views(), st.integers(1, 3))
def test_first_round_gives_every_block_what_it_lacks_where_somebody_can(seen: View, wanted: int) -> None:
    standbys = [r for r in seen.peers if r.state is PeerState.STANDBY]
    first = [r for r in standbys if (call := called(seen, r.peer, wanted=wanted)) and call.round == 0]
    for block in range(seen.num_blocks):
        count = sum(r.state in (PeerState.JOINING, PeerState.ONLINE) and block in r.span for r in seen.peers)
        able = sum(block in r.span for r in standbys)
        assert sum(block in r.span for r in first) >= min(able, max(0, wanted - count))


def test_each_peer_is_watched_by_a_few_of_those_that_would_take_its_place() -> None:
    seen = view(8, [serving("a", 0, 8), *(ready(f"s{i}", 0, 8) for i in range(50))])
    watching = [r.peer for r in seen.peers if watched(seen, r.peer, wanted=1)]
    assert len(watching) == 2
    spare = view(8, [*seen.peers, serving("b", 0, 8)])
    assert not any(watched(spare, r.peer, wanted=1) for r in seen.peers), "nobody is needed if one of two goes"


def test_peer_rests_only_where_others_are_enough() -> None:
    seen = view(8, [serving("a", 0, 8), serving("b", 0, 4), serving("s", 0, 4), serving("t", 2, 6)])
    assert may_rest(seen, PeerId("s"))
    assert not may_rest(seen, PeerId("t"))
    assert not may_rest(seen, PeerId("nobody"))


@given(views(), st.integers(0, 10**9))
def test_of_those_that_share_a_block_one_rests_in_a_slot(seen: View, slot: int) -> None:
    online = [r for r in seen.peers if r.state is PeerState.ONLINE]
    resting = [r for r in online if rests_in(seen, r.peer, slot)]
    assert all(sum(block in r.span for r in resting) <= 1 for block in range(seen.num_blocks))
    assert bool(resting) == bool(online)


# --- what is prepared ------------------------------------------------------------------------------------------------


def prepared(seen: View, name: str, current: Span | None = None) -> Span:
    return prepare(seen, PeerId(name), capacity=4, block_rate=40.0, current=current).span


def test_standbys_prepare_the_thinnest_blocks_and_then_those_that_no_other_is_ready_for() -> None:
    online = [serving("a", 0, 8), serving("b", 0, 8), serving("c", 0, 4)]
    first = prepared(view(8, online), "s")
    assert first == Span(4, 8)
    second = prepared(view(8, [*online, ready("s", 4, 8), ready("t", 4, 8)]), "u")
    assert second == Span(0, 4)


def test_equal_spans_are_shared_out_among_standbys() -> None:
    records = [serving("a", 0, 8)]
    for i in range(16):
        span = prepared(view(8, records), f"s{i}")
        records.append(ready(f"s{i}", span.start, span.end))
    backed = [sum(block in r.span for r in records) for block in range(8)]
    assert max(backed) - min(backed) <= 2


def test_what_is_on_the_disk_is_kept_until_another_span_is_clearly_thinner() -> None:
    online = [serving("a", 0, 8), serving("b", 0, 4)]
    assert prepared(view(8, [*online, ready("s", 4, 8)]), "s", Span(4, 8)) == Span(4, 8)
    turned = [serving("a", 0, 8), serving("b", 4, 8)]
    assert prepared(view(8, [*turned, ready("s", 4, 8)]), "s", Span(4, 8)) == Span(0, 4)
    even = [serving("a", 0, 8), serving("b", 0, 8)]
    assert prepared(view(8, [*even, ready("s", 4, 8)]), "s", Span(4, 8)) == Span(4, 8)


# --- over time -------------------------------------------------------------------------------------------------------


class Pool:
    """Standbys that look every few seconds at a view that is up to `lag` seconds old; each its own."""

    def __init__(self, standbys: Iterable[PeerRecord], *, wanted: int, lag: float, loading: float, seed: int) -> None:
        self._random = random.Random(seed)
        self._lag, self._loading = lag, loading
        self.records = {r.peer: r for r in standbys}
        self._reserves = {peer: Reserve(peer, wanted=wanted, times=TIMES) for peer in self.records}
        self._next = {peer: self._random.uniform(0, LOOK) for peer in self.records}
        self._joining: dict[PeerId, float] = {}
        self._past: list[tuple[float, View]] = []
        self._seen: tuple[tuple[PeerRecord, ...], View] | None = None
        self.now = 0.0
        self.went: list[tuple[float, PeerId]] = []
        self.rested: list[tuple[float, PeerId]] = []
        self.fewest: list[int] = []  # peers of the thinnest block, each tick

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK
            self._note()
            for peer in [peer for peer, at in self._joining.items() if at <= self.now]:
                del self._joining[peer]
                self._set(peer, PeerState.ONLINE)
            for peer in [peer for peer, at in self._next.items() if at <= self.now]:
                self._next[peer] = self.now + LOOK * self._random.uniform(0.5, 1.5)
                self._look(peer)

    def _look(self, peer: PeerId) -> None:
        oldest = self.now - self._random.uniform(0, self._lag)
        seen = next(found for at, found in reversed(self._past) if at <= oldest or at == self._past[0][0])
        own, reserve = self.records[peer], self._reserves[peer]
        known = seen if seen.get(peer) == own else view(8, [*(r for r in seen.peers if r.peer != peer), own])
        if own.state is PeerState.STANDBY and reserve.look(known, self.now) is not None:
            self.went.append((self.now, peer))
            self._set(peer, PeerState.JOINING)
            self._joining[peer] = self.now + self._loading
        elif own.state is PeerState.ONLINE and reserve.rests(known, self.now):
            self.rested.append((self.now, peer))
            self._set(peer, PeerState.STANDBY)

    def _set(self, peer: PeerId, state: PeerState) -> None:
        self.records[peer] = replace(self.records[peer], state=state)

    def _note(self) -> None:
        records = tuple(self.records.values())
        if self._seen is None or any(map(is_not, self._seen[0], records)) or len(self._seen[0]) != len(records):
            self._seen = records, view(8, records)
        self._past = [*self._past, (self.now, self._seen[1])][-80:]
        self.fewest.append(min(self._past[-1][1].replication()))


def pool(*, wanted: int, lag: float, seed: int, others: int = 1) -> tuple[Pool, list[PeerId]]:
    """Fifty that stand by for one half of the blocks, and `others` that serve all: those are not looked at further."""
    standbys = [ready(f"s{i:02}", 4, 8) for i in range(50)]
    found = Pool(standbys, wanted=wanted, lag=lag, loading=3.0, seed=seed)
    names = [PeerId(f"peer{i}") for i in range(others)]
    for name in names:
        found.records[name] = serving(name, 0, 8)
    found.records[PeerId("half")] = serving("half", 0, 4)
    found.records[PeerId("half2")] = serving("half2", 0, 4)
    return found, names


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("lag", "most"), [(0.5, 1), (4.0, 1), (12.0, 3)])
def test_of_fifty_as_many_come_as_blocks_have_lost(lag: float, most: int, seed: int) -> None:
    found, (lost,) = pool(wanted=1, lag=lag, seed=seed)
    found.run(60)
    assert found.went == []
    del found.records[lost]
    found.run(60)
    times = [at - 60 for at, _ in found.went]
    assert 1 <= len(times) <= most
    assert times[0] <= 1.5 * LOOK + lag
    assert min(found.fewest[-50:]) >= 1


def test_standby_that_is_dead_itself_is_replaced_by_the_next_of_its_round() -> None:
    found, (lost,) = pool(wanted=1, lag=1.0, seed=1)
    found.run(20)
    del found.records[lost]
    first = next(peer for peer, number in rounds(view(8, found.records.values()), wanted=1).items() if number == 0)
    found._next.pop(first)
    found.run(40)
    assert len(found.went) == 1
    assert TIMES.round <= found.went[0][0] - 20 <= TIMES.round + 1.5 * LOOK + 1.0 + 1.0


def test_those_that_came_rest_one_by_one_when_the_others_are_back() -> None:
    found, lost = pool(wanted=2, lag=4.0, seed=1, others=2)
    gone = [(name, found.records.pop(name)) for name in lost]
    found.run(60)
    assert len(found.went) == 2
    found.records |= dict(gone)
    began = found.now
    found.run(900)
    assert len(found.went) == 2, "resting calls nobody"
    assert {peer for _, peer in found.rested} == {peer for _, peer in found.went}
    assert found.rested[0][0] >= began + TIMES.calm
    assert found.rested[1][0] - found.rested[0][0] >= TIMES.slot / 2
    assert min(found.fewest[int((began - 20) / TICK) :]) >= 2
