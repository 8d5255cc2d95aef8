from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.chains import PIECE, Chain, Hop, piece_tokens, plan_chain, step_seconds
from routing.load import Load
from routing.perf import Costs, Link, Links, Pace
from routing.view import View
from swarm.errors import MissingBlocks
from swarm.ids import PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerState
from tests.routing.records import CLIENT, EXACT, LINK, links, record, view, views, whole_views

LAN = Links(Link(0.001, 1e8))
TOKEN = 1000  # bytes


def plan(
    seen: View, blocks: Span | None = None, *, links: Links = LAN, costs: Costs = EXACT, **options: object
) -> Chain:
    ends = {"source": CLIENT, "sink": CLIENT, "token_bytes": TOKEN} | options
    return plan_chain(seen, blocks or Span(0, seen.num_blocks), links=links, costs=costs, **ends)  # type: ignore[arg-type]


def every_way(seen: View, at: int, end: int, last: PeerId | None = None) -> Iterator[list[tuple[PeerId, Span]]]:
    """All chains of online peers over [at, end)."""
    if at == end:
        yield []
        return
    for holder in seen.holders(at):
        if holder.peer != last:
            for cut in range(at + 1, min(holder.span.end, end) + 1):
                for rest in every_way(seen, cut, end, holder.peer):
                    yield [(holder.peer, Span(at, cut)), *rest]


def ring_seconds(seen: View, way: list[tuple[PeerId, Span]], links: Links, rows: int) -> float:
    stops = [CLIENT, *(peer for peer, _ in way), CLIENT]
    travel = sum(links.between(a, b).transfer(rows * TOKEN) for a, b in pairwise(stops))
    records = {r.peer: r for r in seen.peers}
    return travel + sum(Pace.of(records[peer], EXACT).step(len(span), rows) for peer, span in way)


@given(whole_views(), st.data())
def test_chain_covers_every_block_exactly_once_with_peers_that_hold_them(seen: View, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, seen.num_blocks - 1))
    blocks = Span(start, data.draw(st.integers(start + 1, seen.num_blocks)))
    chain = plan(seen, blocks)
    assert [block for hop in chain for block in hop.span] == list(blocks)
    for hop in chain:
        holder = seen.get(hop.peer)
        assert holder is not None
        assert holder.state is PeerState.ONLINE
        assert hop.span in holder.span


@given(views(), st.sets(st.sampled_from([PeerId(f"peer{i}") for i in range(5)])))
def test_blocks_are_missing_exactly_when_all_who_hold_them_are_avoided(seen: View, avoid: set[PeerId]) -> None:
    expected = tuple(b for b in range(seen.num_blocks) if all(r.peer in avoid for r in seen.holders(b)))
    if expected:
        with pytest.raises(MissingBlocks) as caught:
            plan(seen, avoid=avoid)
        assert caught.value.blocks == expected
    else:
        assert not avoid & set(plan(seen, avoid=avoid).peers)


def test_blocks_that_nobody_holds_are_told_from_blocks_of_avoided_peers() -> None:
    records = [record("a", 0, 2, num_blocks=6), record("b", 2, 4, num_blocks=6)]
    with pytest.raises(MissingBlocks) as caught:
        plan(view(6, records), avoid={PeerId("b")})
    assert caught.value.blocks == (2, 3, 4, 5)
    assert "no online peer holds blocks 4:6" in str(caught.value)
    assert "blocks 2:4 are held only by peers that failed lately: b" in str(caught.value)


def test_chain_for_an_adapter_has_only_peers_that_host_it() -> None:
    records = [record(name, *blocks, num_blocks=4) for name, blocks in (("a", (0, 4)), ("b", (0, 2)), ("c", (2, 4)))]
    hosts = [replace(each, adapters=(("style", "5eed"),)) for each in records[1:]]
    assert str(plan(view(4, [replace(records[0], throughput=999.0), *hosts]), hosting="5eed")) == "0:2 @ b  2:4 @ c"
    with pytest.raises(MissingBlocks, match="no peer that holds blocks 2:4 hosts the adapter"):
        plan(view(4, [records[0], hosts[0]]), hosting="5eed")


@settings(max_examples=300)
@given(whole_views(), links(), st.integers(1, 3))
def test_chain_is_as_fast_as_the_best_of_all_possible_ones(seen: View, known: Links, rows: int) -> None:
    best = min(ring_seconds(seen, way, known, rows) for way in every_way(seen, 0, seen.num_blocks))
    chain = plan(seen, links=known, rows=rows)
    assert chain.seconds == pytest.approx(best, rel=1e-6)
    way = [(hop.peer, hop.span) for hop in chain]
    assert chain.seconds == pytest.approx(ring_seconds(seen, way, known, rows), rel=1e-9)


def test_chain_comes_back_to_a_peer_where_another_is_much_faster_in_between() -> None:
    slow = record("a", 0, 9, num_blocks=9, throughput=1.0)
    quick = record("b", 3, 6, num_blocks=9, throughput=1000.0)
    assert str(plan(view(9, [slow, quick]))) == "0:3 @ a  3:6 @ b  6:9 @ a"


@given(whole_views(), st.binary(max_size=80), st.randoms())
def test_plan_is_the_same_whatever_the_order_of_the_records(seen: View, salt: bytes, random: object) -> None:
    shuffled = list(seen.peers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = view(seen.num_blocks, shuffled)
    assert plan(seen, salt=salt, costs=Costs()) == plan(again, salt=salt, costs=Costs())


def test_clients_with_different_salts_spread_over_equal_peers() -> None:
    seen = view(4, [record(f"p{i}", 0, 4, num_blocks=4) for i in range(8)])
    chosen = {plan(seen, salt=bytes([i])).peers for i in range(200)}
    assert len(chosen) == 8


@given(whole_views(), links(), LINK)
def test_more_delay_on_every_link_is_never_faster(seen: View, known: Links, more: Link) -> None:
    slower = Links(
        replace(known.default, delay=known.default.delay + more.delay),
        {pair: replace(link, delay=link.delay + more.delay) for pair, link in known.known.items()},
        known.origin,
    )
    assert plan(seen, links=slower).seconds >= plan(seen, links=known).seconds * (1 - 1e-6)


@given(whole_views(), links())
def test_avoiding_a_peer_is_never_faster(seen: View, known: Links) -> None:
    first = plan(seen, links=known)
    try:
        second = plan(seen, links=known, avoid={first.peers[0]})
    except MissingBlocks:
        return
    assert second.seconds >= first.seconds * (1 - 1e-6)


def test_peers_of_the_wanted_precision_come_first_and_others_where_they_are_needed() -> None:
    fast = record("fast", 0, 4, num_blocks=4, throughput=1000, precision="int4")
    same = record("same", 0, 2, num_blocks=4, throughput=10)
    assert plan(view(4, [fast, same])).peers == (PeerId("fast"),)
    assert plan(view(4, [fast, same]), Span(0, 2), like=["fp32"]).peers == (PeerId("same"),)
    whole = plan(view(4, [fast, same]), like=["fp32"])
    assert whole.peers == (PeerId("fast"),)  # needed for the rest, so the other would only be one more hop
    assert "hops compute in" not in whole.reason
    other = record("other", 2, 4, num_blocks=4, precision="int8")
    assert "its hops compute in fp32 and int8" in plan(view(4, [same, other])).reason


def test_loaded_and_full_peers_are_left_for_last() -> None:
    idle = record("idle", 0, 4, num_blocks=4)
    loaded = record("loaded", 0, 4, num_blocks=4, throughput=11, queue=500)
    full = record("full", 0, 4, num_blocks=4, throughput=1000, cache_left=10)
    assert plan(view(4, [idle, loaded, full]), tokens=100).peers == (PeerId("idle"),)
    assert plan(view(4, [full]), tokens=100).peers == (PeerId("full"),)


def test_gap_between_two_living_hops_is_filled_by_the_peer_that_is_near_both() -> None:
    records = [record("far", 2, 4, num_blocks=6), record("near", 2, 4, num_blocks=6)]
    before, after = PeerId("before"), PeerId("after")
    known = {(before, PeerId("near")): Link(0.001, 1e8), (PeerId("near"), after): Link(0.001, 1e8)}
    part = plan(view(6, records), Span(2, 4), links=Links(Link(0.1, 1e8), known), source=before, sink=after)
    assert part.peers == (PeerId("near"),)


def test_gap_is_filled_by_its_living_neighbour_where_nobody_else_can() -> None:
    part = plan(view(4, [record("a", 0, 4, num_blocks=4)]), Span(2, 4), source=PeerId("a"))
    assert str(part) == "2:4 @ a"


def test_hops_with_a_hole_between_them_are_no_chain() -> None:
    first, second = (Hop(Contact(PeerId(name)), span, 0.1) for name, span in {"a": Span(0, 2), "b": Span(3, 4)}.items())
    with pytest.raises(ValueError, match="adjoin"):
        Chain((first, second), 0.2, "")


@given(whole_views(), links(), st.integers(1, 3), st.integers(1, 500), st.integers(1, 500))
def test_more_tokens_in_a_step_never_take_less_time(seen: View, known: Links, rows: int, few: int, more: int) -> None:
    chain = plan(seen, links=known, rows=rows)
    back = known.between(chain.peers[-1], CLIENT).transfer(rows * TOKEN)
    steps = (rows, rows + few, rows + few + more)
    times = [step_seconds(chain, tokens=tokens, rows=rows, token_bytes=TOKEN) for tokens in steps]
    assert times[0] + back == pytest.approx(chain.seconds)
    assert times == sorted(times)


def test_step_of_a_hop_with_unknown_slope_is_taken_for_one_row_at_a_time() -> None:
    hop = Hop(Contact(PeerId("a")), Span(0, 2), 0.1)
    assert step_seconds([hop], tokens=10, rows=1, token_bytes=TOKEN) == pytest.approx(1.0)


def test_reason_names_the_slowest_part() -> None:
    records = [record("quick", 0, 2, num_blocks=4, throughput=100), record("slow", 2, 4, num_blocks=4, throughput=2)]
    chain = plan(view(4, records))
    assert "computing 2:4 @ slow takes 500 ms" in chain.reason
    assert str(chain) == "0:2 @ quick  2:4 @ slow"


def test_wide_views_are_cut_to_the_promising_peers_without_losing_a_block() -> None:
    records = [record(f"p{i:03}", i % 28, i % 28 + 5, num_blocks=32, throughput=1 + i % 7) for i in range(280)]
    seen = view(32, records)
    narrow, wide = plan(seen, costs=replace(EXACT, width=3)), plan(seen, costs=replace(EXACT, width=1000))
    assert narrow.span == wide.span == Span(0, 32)
    assert wide.seconds <= narrow.seconds <= 1.2 * wide.seconds


# --- long prompts in pieces ---


def alike(count: int, *, seconds: float = 0.015, token: float = 0.001, bandwidth: float = 1e9) -> list[Hop]:
    """Hops that share 30 blocks, each of which takes its part of the time."""
    link = Link(0.001, bandwidth)
    return [
        Hop(Contact(PeerId(str(n))), Span(n, n + 1), seconds=seconds / count, token_seconds=token / count, link=link)
        for n in range(count)
    ]


def pieces(hops: list[Hop], tokens: int = 1024) -> int:
    return piece_tokens(hops, tokens=tokens, token_bytes=TOKEN, most=512)


def test_a_chain_of_one_gets_its_prompt_in_the_largest_pieces() -> None:
    assert pieces(alike(1)) == 512


def test_more_hops_overlap_on_smaller_pieces() -> None:
    sizes = [pieces(alike(count)) for count in (1, 2, 3, 5, 10)]
    assert sizes == sorted(sizes, reverse=True)
    assert 96 <= sizes[1] <= 144, "the root of tokens times what a step costs beside them, over what a token costs"
    assert sizes[-1] < 64


def test_steps_that_cost_much_beside_their_tokens_are_not_cut_small() -> None:
    assert pieces(alike(2, seconds=0.5)) > pieces(alike(2)) > pieces(alike(2, seconds=0.002))


def test_a_prompt_is_cut_as_if_others_left_their_peers_alone() -> None:
    records = [record("a", 0, 2, num_blocks=4, prefill=1000.0), record("b", 2, 4, num_blocks=4, prefill=1000.0)]
    loads = {PeerId(name): Load(queue=500) for name in "ab"}
    idle, busy = plan(view(4, records)), plan(view(4, records), loads=loads)
    assert busy.seconds > 2 * idle.seconds
    assert pieces(list(busy.hops)) == pieces(list(idle.hops)) < 512


def test_short_steps_stay_in_one_piece() -> None:
    assert pieces(alike(3), tokens=1) == PIECE
    assert pieces(alike(2), tokens=40) >= 40


@given(st.integers(1, 6), st.integers(1, 4000), st.integers(16, 600))
def test_pieces_come_whole_pages_at_a_time(count: int, tokens: int, most: int) -> None:
    piece = piece_tokens(alike(count), tokens=tokens, token_bytes=TOKEN, most=most)
    assert piece % PIECE == 0
    assert PIECE <= piece <= most
