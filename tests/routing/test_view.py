import itertools
import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from routing.view import View, newest, runs
from swarm.ids import Digest, PeerId, Span
from swarm.record import PeerState
from tests.routing.records import MODEL, NOW, record, view, views


def test_view_keeps_the_newest_live_record_of_each_peer_of_this_model() -> None:
    good = record("a", 0, 2, num_blocks=4)
    others = [
        record("a", 2, 4, num_blocks=4, issued=good.issued - 1),
        record("b", 0, 2, num_blocks=4, model=Digest("cd" * 32)),
        record("c", 0, 2, num_blocks=4, expires=NOW),
    ]
    assert view(4, [*others, good, *others]).peers == (good,)


def test_peer_that_went_offline_does_not_come_back_by_an_older_record() -> None:
    old = record("a", 0, 2, num_blocks=4)
    last = replace(old, issued=old.issued + 1, state=PeerState.OFFLINE)
    assert view(4, [last, old]).peers == ()
    assert newest([last, old], model=MODEL, num_blocks=4, now=NOW) == (last,)


def test_records_whose_figures_make_no_sense_are_dropped() -> None:
    good = record("a", 0, 2, num_blocks=4)
    absurd = [
        replace(good, throughput=math.inf),
        replace(good, throughput=1e300),
        replace(good, throughput=math.nan),
        replace(good, prefill=0.0),
        replace(good, queue=-1),
        replace(good, num_blocks=5),
        replace(good, span=Span(3, 5)),
    ]
    assert all(view(4, [bad]).peers == () for bad in absurd)


def test_only_online_peers_hold_blocks_and_the_others_are_still_seen() -> None:
    records = [record(state, 0, 4, num_blocks=4, state=state) for state in PeerState]
    seen = view(4, records)
    assert [r.peer for r in seen.holders(0)] == ["online"]
    assert {r.state for r in seen.peers} == set(PeerState) - {PeerState.OFFLINE}
    assert seen.get(PeerId("joining")) == record("joining", 0, 4, num_blocks=4, state=PeerState.JOINING)
    assert seen.get(PeerId("nobody")) is None


@given(views(), st.data())
def test_holders_missing_and_replication_agree(seen: View, data: st.DataObject) -> None:
    blocks = Span(0, seen.num_blocks)
    counts = tuple(sum(r.state is PeerState.ONLINE and b in r.span for r in seen.peers) for b in blocks)
    assert seen.replication() == counts == tuple(len(seen.holders(b)) for b in blocks)
    assert seen.missing(blocks) == tuple(b for b in blocks if counts[b] == 0)
    assert seen.holders(seen.num_blocks) == seen.holders(-1) == ()


@given(st.sets(st.integers(0, 20)))
def test_runs_are_the_fewest_spans_over_the_blocks(blocks: set[int]) -> None:
    spans = runs(sorted(blocks))
    assert [b for span in spans for b in span] == sorted(blocks)
    assert all(a.end < b.start for a, b in itertools.pairwise(spans))
