from hypothesis import given

from routing.blockmap import block_map
from routing.view import View
from swarm.ids import Digest, Span
from swarm.record import PeerState
from tests.routing.records import NOW, record, view, views


def test_map_shows_who_holds_what_and_where_the_swarm_is_weakest() -> None:
    records = [
        record("a", 0, 4, num_blocks=6, throughput=5.0),
        record("b", 2, 6, num_blocks=6, throughput=3.0),
        record("c", 4, 6, num_blocks=6, throughput=9.0, state=PeerState.JOINING),
        record("d", 0, 6, num_blocks=6, throughput=9.0, state=PeerState.DRAINING),
    ]
    gone = record("e", 0, 1, num_blocks=6, state=PeerState.OFFLINE)
    shown = block_map(view(6, records), offline=[gone])
    assert [row.replication for row in shown.blocks] == [1, 1, 2, 2, 1, 1]
    assert [row.throughput for row in shown.blocks] == [5, 5, 8, 8, 3, 3]
    assert shown.blocks[5].joining == ("c",)
    assert shown.weakest == (Span(4, 6),)
    assert (shown.missing, shown.throughput, shown.replication) == ((), 3.0, 1)
    assert [row.peer for row in shown.peers] == ["e", "a", "d", "b", "c"]
    assert [row.state for row in shown.peers][:2] == [PeerState.OFFLINE, PeerState.ONLINE]
    assert shown.peers[0].age == NOW - gone.issued


def test_map_of_an_empty_swarm_is_all_missing() -> None:
    shown = block_map(View(Digest("ab" * 32), 3, (), NOW))
    assert shown.missing == shown.weakest == (Span(0, 3),)
    assert (shown.throughput, shown.replication, shown.name, shown.peers) == (0.0, 0, "", ())


@given(views())
def test_map_agrees_with_the_view(seen: View) -> None:
    shown = block_map(seen)
    assert tuple(row.replication for row in shown.blocks) == seen.replication()
    assert [b for span in shown.missing for b in span] == list(seen.missing(Span(0, seen.num_blocks)))
    assert {row.peer for row in shown.peers} == {r.peer for r in seen.peers}
