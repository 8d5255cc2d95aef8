"""A moment in the life of a peer, for tests of what is shown of it."""

from dataclasses import replace
from typing import Any

from peers.moment import Moment
from peers.ready import Ready
from peers.stats import EngineStats
from peers.thanks import Thanks
from peers.vitals import Vitals
from swarm.ids import PeerId, Span
from swarm.record import PeerState

__all__ = ["PEER", "a_moment", "a_ready"]

PEER = PeerId("12D3KooWNcM6g9PztXyMLeWT9RYHMQ2ESaGeDVZePrssTyXr66NZ")


def a_ready(**changes: Any) -> Ready:
    ready = Ready(
        peer_id=PEER,
        addresses=(f"/ip4/192.168.1.4/tcp/31330/p2p/{PEER}",),
        model="smollm2",
        blocks=Span(0, 15),
        num_blocks=30,
        reason="blocks 0:15 had no peer",
        precision="int4",
        precision_reason="the quickest here",
        device="2 cores",
        kv_tokens=8192,
        throughput=33.0,
        name="garage",
    )
    return replace(ready, **changes)


def a_moment(**changes: Any) -> Moment:
    ready = changes.pop("ready", a_ready())
    moment = Moment(
        ready=ready,
        state=PeerState.ONLINE,
        addresses=ready.addresses,
        uptime=7384.0,
        engine=EngineStats(sessions=3, rows=5, page_tokens=16, kv_tokens=8192, kv_tokens_free=6144),
        executor_bytes=800_000_000,
        device=None,
        vitals=Vitals(own=200_000_000, free=5_000_000_000, temperature=61.2),
        tokens=1234,
        sessions_taken=12,
        thanks=Thanks(tokens=1_234_567, sessions=99, seconds=1e6, runs=7, since="2026-11-01"),
        rate=41.25,
        rates=(0.0, 10.0, 20.0, 40.0),
        batch=2.66,
        busy=0.64,
    )
    return replace(moment, **changes)
