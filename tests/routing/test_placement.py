from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.placement import Placement, block_rates, place
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState
from tests.routing.records import record, view


def join(records: Sequence[PeerRecord], name: str, capacity: int, rate: float, num_blocks: int) -> Placement:
    return place(view(num_blocks, records), capacity=capacity, block_rate=rate, peer=PeerId(name))


def placed(name: str, span: Span, rate: float, num_blocks: int, state: PeerState = PeerState.ONLINE) -> PeerRecord:
    return record(name, span.start, span.end, num_blocks=num_blocks, throughput=rate / len(span), state=state)


@given(
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 4),
    st.floats(0.01, 1000),
    st.data(),
    st.sampled_from([PeerState.JOINING, PeerState.ONLINE]),
)
def test_equal_peers_that_join_in_turn_give_every_block_equally_often(
    parts: int, size: int, rounds: int, rate: float, data: st.DataObject, state: PeerState
) -> None:
    num_blocks = parts * size
    records: list[PeerRecord] = []
    for name in data.draw(st.lists(st.integers(), min_size=parts * rounds, max_size=parts * rounds, unique=True)):
        span = join(records, f"peer{name}", size, rate, num_blocks).span
        records.append(placed(f"peer{name}", span, rate, num_blocks, state))
    assert [sum(b in r.span for r in records) for b in range(num_blocks)] == [rounds] * num_blocks


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(1, 25), st.floats(0.01, 1000)), min_size=1, max_size=12))
def test_no_block_is_missing_once_the_capacity_of_peers_that_join_in_turn_suffices(
    num_blocks: int, peers: list[tuple[int, float]]
) -> None:
    records: list[PeerRecord] = []
    total, weakest = 0, 0.0
    for i, (capacity, rate) in enumerate(peers):
        placement = join(records, f"peer{i}", capacity, rate, num_blocks)
        records.append(placed(f"peer{i}", placement.span, rate, num_blocks))
        total += capacity
        assert len(placement.span) == min(capacity, num_blocks)
        assert placement.before == pytest.approx(weakest)
        assert placement.after >= placement.before
        weakest = min(block_rates(view(num_blocks, records)))
        assert placement.after == pytest.approx(weakest)
        assert (weakest > 0) == (total >= num_blocks)


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12), st.sampled_from([1.0, 2.0, 7.5])), max_size=8),
    st.integers(1, 12),
)
def test_no_other_span_would_lift_the_weakest_block_more(
    num_blocks: int, others: list[tuple[int, int, float]], capacity: int
) -> None:
    records = []
    for i, (start, length, rate) in enumerate(others):
        start = start % num_blocks
        records.append(placed(f"p{i}", Span(start, min(start + length, num_blocks)), rate, num_blocks))
    placement = place(view(num_blocks, records), capacity=capacity, block_rate=3.0, peer=PeerId("new"), replicas=1)
    size = len(placement.span)
    for start in range(num_blocks - size + 1):
        other = placed("new", Span(start, start + size), 3.0, num_blocks)
        assert min(block_rates(view(num_blocks, [*records, other]))) <= placement.after * (1 + 1e-9)


def settle(records: list[PeerRecord], rate: float, num_blocks: int) -> list[PeerRecord]:
    """All joiners ask again at the same moment."""
    seen = view(num_blocks, records)
    return [
        placed(
            r.peer,
            place(seen, capacity=len(r.span), block_rate=rate, peer=r.peer, current=r.span).span,
            rate,
            num_blocks,
            r.state,
        )
        for r in records
    ]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.data())
def test_peers_that_joined_at_the_same_moment_settle_evenly(
    parts: int, size: int, rounds: int, data: st.DataObject
) -> None:
    num_blocks, count = parts * size, parts * rounds
    names = data.draw(st.lists(st.integers(), min_size=count, max_size=count, unique=True))
    records = []
    for name in names:
        span = join([], f"peer{name}", size, 10.0, num_blocks).span
        records.append(placed(f"peer{name}", span, 10.0, num_blocks, PeerState.JOINING))
    for _ in range(count):
        records = settle(records, 10.0, num_blocks)
    assert settle(records, 10.0, num_blocks) == records
    assert [sum(b in r.span for r in records) for b in range(num_blocks)] == [rounds] * num_blocks


def test_peers_that_join_an_empty_swarm_at_once_do_not_all_choose_the_same() -> None:
    assert len({join([], f"peer{i}", 5, 1.0, 10).span for i in range(20)}) == 2


def test_span_that_is_as_good_as_any_is_kept() -> None:
    records = [placed("a", Span(0, 5), 10.0, 10), placed("me", Span(5, 10), 10.0, 10)]
    for current in (Span(0, 5), Span(5, 10)):
        kept = place(view(10, records[:0]), capacity=5, block_rate=10.0, peer=PeerId("me"), current=current)
        assert kept.span == current
    moved = place(view(10, records), capacity=5, block_rate=10.0, peer=PeerId("me"), current=Span(0, 5))
    assert moved.span == Span(5, 10)


def test_leaving_peers_do_not_count() -> None:
    leaving = placed("a", Span(0, 5), 10.0, 10, PeerState.DRAINING)
    staying = placed("b", Span(5, 10), 10.0, 10)
    assert join([leaving, staying], "new", 5, 1.0, 10).span == Span(0, 5)


@given(st.permutations([100.0, 10.0, 7.0, 1.0]))
def test_every_block_stands_twice_before_slow_peers_add_up(rates: list[float]) -> None:
    records: list[PeerRecord] = []
    for i, rate in enumerate(rates):
        records.append(placed(f"peer{i}", join(records, f"peer{i}", 5, rate, 10).span, rate, 10))
    assert view(10, records).replication() == (2,) * 10


def test_throughput_alone_decides_where_no_replicas_are_asked_for() -> None:
    records = [
        placed("a", Span(0, 5), 100.0, 10),
        placed("b", Span(5, 10), 10.0, 10),
        placed("c", Span(5, 10), 10.0, 10),
    ]
    seen = view(10, records)
    spans = [place(seen, capacity=5, block_rate=1.0, peer=PeerId("new"), replicas=n).span for n in (1, 2)]
    assert spans == [Span(5, 10), Span(0, 5)]


def twice(records: list[PeerRecord]) -> list[PeerRecord]:
    """Each peer as two of half its throughput."""
    halves = [replace(r, throughput=r.throughput / 2) for r in records]
    return halves + [replace(r, contact=Contact(PeerId(r.peer + "'"))) for r in halves]


def test_reason_tells_which_blocks_had_no_peer() -> None:
    placement = join([placed("a", Span(0, 15), 150.0, 30)], "new", 20, 100.0, 30)
    assert placement.span == Span(10, 30)
    assert placement.reason == "blocks 15:30 had no peer"
    assert (placement.before, placement.after) == (0.0, 5.0)


def test_reason_tells_which_blocks_had_only_one_peer() -> None:
    records = [placed("a", Span(0, 30), 150.0, 30), placed("b", Span(0, 10), 1.0, 30)]
    assert join(records, "new", 20, 100.0, 30).reason == "blocks 10:30 had only 1 peer"


def test_reason_tells_the_least_throughput_from_the_rest() -> None:
    records = twice([placed("a", Span(0, 15), 12.0 * 15, 30), placed("b", Span(15, 30), 31.0 * 15, 30)])
    placement = join(records, "new", 15, 150.0, 30)
    assert placement.span == Span(0, 15)
    assert placement.reason == "blocks 0:15 had the least throughput: 12 rows/s against 31 elsewhere"
    assert (placement.before, placement.after) == (12.0, 22.0)


def test_reason_tells_when_any_span_would_do() -> None:
    records = twice([placed("a", Span(0, 4), 2.0, 4)])
    reason = join(records, "new", 2, 1.0, 4).reason
    assert reason.startswith("every block had the same throughput, 0.5 rows/s, and ")
    assert join(records, "new", 9, 1.0, 4).reason == "this machine holds all 4 blocks"


def test_reason_names_some_of_many_weakest_blocks() -> None:
    records = twice([placed("a", Span(0, 6), 6.0, 6), placed("b", Span(2, 4), 2.0, 6)])
    placement = join(records, "new", 2, 2.0, 6)
    assert placement.reason == f"blocks {placement.span} were among the weakest: 1 rows/s"


def test_span_that_was_asked_for_is_taken_as_it_is() -> None:
    placement = place(view(10, []), capacity=1, block_rate=6.0, peer=PeerId("me"), fixed=Span(2, 4))
    assert placement == Placement(Span(2, 4), "blocks 2:4 were asked for", 0.0, 0.0)


def test_span_beyond_the_model_and_a_machine_without_room_are_refused() -> None:
    with pytest.raises(UsageError, match="0:10; 8:12 is not"):
        place(view(10, []), capacity=4, block_rate=1.0, peer=PeerId("me"), fixed=Span(8, 12))
    with pytest.raises(UsageError, match="no room"):
        join([], "me", 0, 1.0, 10)
