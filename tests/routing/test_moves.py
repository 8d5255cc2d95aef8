import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from hypothesis import given
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from routing.moves import plan_moves, reconsider
from routing.placement import block_rates
from routing.view import View
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.record import PeerRecord, PeerState
from tests.routing.records import record, view, views
from tests.routing.simulator import Member, Simulation

HOUR = 3600.0
SETTLING = 2400.0  # s after which nobody moves any more
SIZES = {10: (3, 4, 6), 100: (2, 4, 8, 16), 1000: (4, 8, 16, 40)}  # blocks that peers have memory for
BLOCKS = {10: 12, 100: 32, 1000: 80}


def members(count: int, seed: int, *, settled: float = 0.0, first: int = 0) -> list[Member]:
    """Of machines, one in six computes less than half of what the median one does, and one in six more than twice."""
    rng = random.Random(seed)
    return [
        Member(f"p{first + i}", rng.choice(SIZES[count]), rng.lognormvariate(6, 0.7), rng.random() < settled)
        for i in range(count)
    ]


def best(num_blocks: int, peers: Sequence[Member]) -> float:
    """The most rows per second that the weakest block can have: exact for few peers. For many, each of which may be in
    several places in part, it is a little more than can be had."""
    if len(peers) > 20:
        work: dict[int, float] = {}
        for peer in peers:
            work[peer.size] = work.get(peer.size, 0.0) + peer.work / peer.size
        groups = list(work.items())
    else:
        groups = [(peer.size, peer.work / peer.size) for peer in peers]
    columns = [(g, start) for g, (size, _) in enumerate(groups) for start in range(num_blocks - size + 1)]
    rates = np.zeros((num_blocks, len(columns) + 1))  # the last column: the weakest block's
    rates[:, -1] = -1
    once = np.zeros((len(groups), len(columns) + 1))
    for column, (g, start) in enumerate(columns):
        size, rate = groups[g]
        rates[start : start + size, column] = rate
        once[g, column] = 1
    goal = [0.0] * len(columns) + [-1.0]
    if len(peers) > 20:
        return -float(linprog(goal, -rates, np.zeros(num_blocks), once, np.ones(len(groups))).fun)
    rules = [LinearConstraint(rates, 0, np.inf), LinearConstraint(once, 1, 1)]
    whole = [1] * len(columns) + [0]
    return -float(milp(goal, constraints=rules, integrality=whole, bounds=Bounds(0, np.inf)).fun)


def soak(count: int, seeds: Iterable[int]) -> list[ParameterSet]:
    return [pytest.param(count, seed, marks=pytest.mark.soak) for seed in seeds]


@pytest.mark.parametrize(
    ("count", "seed"),
    [(10, 0), (10, 1), (100, 0), *soak(10, range(2, 20)), *soak(100, range(1, 20)), *soak(1000, range(3))],
)
def test_swarm_whose_peers_all_hold_the_same_blocks_spreads_out_and_then_rests(count: int, seed: int) -> None:
    peers = members(count, seed)
    swarm = Simulation(BLOCKS[count], peers, seed=seed)
    story = swarm.run(SETTLING + HOUR)
    assert story.weakest[0][1] == 0.0
    assert swarm.weakest >= 0.9 * best(BLOCKS[count], peers)
    assert 0 < len(story.moves) <= count
    assert story.moved_between(SETTLING, SETTLING + HOUR) == 0
    assert story.uncovered == 0


@pytest.mark.soak
def test_rates_that_waver_move_hardly_anybody() -> None:
    peers = members(100, 3)
    swarm = Simulation(32, peers, seed=3, wobble=0.03)
    story = swarm.run(SETTLING + HOUR)
    assert swarm.weakest >= 0.9 * best(32, peers)
    assert story.moved_between(SETTLING, SETTLING + HOUR) <= 3  # of a hundred, where chance makes a gain look like one


def test_swarm_spreads_out_again_after_peers_died_and_others_joined() -> None:
    swarm = Simulation(32, members(100, 4), seed=4)
    swarm.run(SETTLING)
    before = len(swarm.story.moves)
    swarm.die([peer.name for peer in swarm.members if PeerId(peer.name) in swarm.holders(0)])
    assert swarm.weakest == 0.0
    for newcomer in members(100, 5, first=100)[:20]:
        swarm.run(40.0)
        swarm.join(newcomer)
    story = swarm.run(SETTLING + HOUR)
    assert swarm.weakest >= 0.9 * best(32, swarm.members)
    assert len(story.moves) - before <= len(swarm.members)
    assert story.moved_between(swarm.now - HOUR, swarm.now) == 0


def test_peers_that_are_expected_to_move_and_never_do_send_nobody_round_in_circles() -> None:
    swarm = Simulation(32, members(100, 1, settled=0.2), seed=1)
    story = swarm.run(SETTLING + 2 * HOUR)
    assert story.moved_between(SETTLING + HOUR, SETTLING + 2 * HOUR) == 0
    assert len(story.moves) <= 200


def moved(seen: View, *peers: PeerId) -> View:
    """`seen` after these peers followed the plan; all of them if none is named."""
    plan = plan_moves(seen)
    targets = {move.peer: move.target for move in plan.moves if not peers or move.peer in peers}
    return view(seen.num_blocks, [replace(r, span=targets.get(r.peer, r.span)) for r in seen.peers])


@given(views(max_blocks=8, max_peers=8))
def test_plan_gains_what_it_says_and_leaves_no_block_alone(seen: View) -> None:
    plan = plan_moves(seen)
    after = moved(seen)
    assert min(block_rates(seen)) == plan.before
    assert min(block_rates(after)) == pytest.approx(plan.after)
    assert plan.gain >= 0.05 or not plan.moves
    going = {move.peer for move in plan.moves}
    for block in range(seen.num_blocks):
        holders = {holder.peer for holder in seen.holders(block)}
        assert not holders or holders - going
    for move in plan.moves:
        assert len(move.target) == len(move.origin)
        assert move.origin != move.target


def crowd(count: int, *spans: Span, num_blocks: int = 8) -> list[PeerRecord]:
    """`count` peers at each of `spans`."""
    return [
        record(f"p{span.start}-{i}", span.start, span.end, num_blocks=num_blocks)
        for span in spans
        for i in range(count)
    ]


def test_of_many_who_see_the_same_weak_block_as_many_go_as_it_needs() -> None:
    seen = view(8, [*crowd(19, Span(0, 4)), *crowd(1, Span(4, 8))])
    going = [r.peer for r in seen.peers if reconsider(seen, r.peer).span == Span(4, 8) and r.span != Span(4, 8)]
    assert len(going) == 9
    assert block_rates(moved(seen)) == (100.0,) * 8


def test_peer_is_told_why_it_moves() -> None:
    seen = view(8, [*crowd(5, Span(0, 4)), *crowd(1, Span(4, 8))])
    told = [reconsider(seen, record.peer) for record in seen.peers]
    moves = [placement for placement in told if "makes the least" in placement.reason]
    assert [placement.span for placement in moves] == [Span(4, 8)] * 2
    assert moves[0].reason == (
        "blocks 4:8 had the least throughput, 10 rows/s; from 0:4 to 4:8 with 1 other move makes the least 30 (+200%)"
    )
    assert (moves[0].before, moves[0].after) == (10.0, 30.0)


def test_peer_is_told_that_blocks_had_no_peer() -> None:
    seen = view(8, crowd(2, Span(0, 4)))
    reasons = {reconsider(seen, record.peer).reason for record in seen.peers}
    assert reasons == {
        "blocks 4:8 had no peer; from 0:4 to 4:8 gives every block one",
        "others are better placed to help blocks 4:8",
    }


def test_peer_stays_where_nothing_is_to_gain() -> None:
    seen = view(8, crowd(3, Span(0, 4), Span(4, 8)))
    stay = reconsider(seen, seen.peers[0].peer)
    assert stay.span == seen.peers[0].span
    assert stay.reason == "no move would give the weakest block, blocks 0:8, 5% more throughput"


def test_gain_below_the_threshold_moves_nobody() -> None:
    small = record("small", 0, 4, num_blocks=8, throughput=2.0)
    seen = view(8, [*crowd(3, Span(0, 4)), *crowd(2, Span(4, 8)), small])
    assert plan_moves(seen, min_gain=0.09).gain == pytest.approx(0.1)
    assert plan_moves(seen, min_gain=0.11).moves == ()


def test_peer_that_is_on_its_way_counts_where_it_goes() -> None:
    coming = record("coming", 4, 8, num_blocks=8, state=PeerState.JOINING)
    assert plan_moves(view(8, [*crowd(3, Span(0, 4)), *crowd(1, Span(4, 8)), coming])).moves == ()


def test_peer_whose_user_chose_its_blocks_is_not_planned_with_but_relied_on() -> None:
    fixed = [replace(record, fixed=True) for record in crowd(5, Span(0, 4))]
    assert plan_moves(view(8, fixed)).moves == ()
    free = record("free", 0, 4, num_blocks=8)
    assert [move.peer for move in plan_moves(view(8, [*fixed, free])).moves] == ["free"]
    assert plan_moves(view(8, [free])).moves == ()


def test_last_peer_of_a_block_stays() -> None:
    assert (
        plan_moves(view(12, [*crowd(1, Span(0, 4), num_blocks=12), *crowd(1, Span(4, 8), num_blocks=12)])).moves == ()
    )


def test_boast_of_one_peer_changes_nothing_for_the_blocks_of_others() -> None:
    boaster = record("boaster", 0, 4, num_blocks=12, throughput=1e12)
    honest = [*crowd(5, Span(4, 8), num_blocks=12), *crowd(1, Span(8, 12), num_blocks=12)]
    after = block_rates(moved(view(12, [boaster, *honest])))
    assert after[4:] == (30.0,) * 8


def test_peer_that_is_not_announced_has_nothing_to_move() -> None:
    with pytest.raises(UsageError, match="not announced"):
        reconsider(view(8, []), PeerId("me"))
