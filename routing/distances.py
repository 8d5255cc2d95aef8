"""What is known of the ways between a client and peers, and between peers, as planning wants it."""

from collections.abc import Iterable, Mapping

from routing.perf import Link, Links
from swarm.ids import PeerId
from swarm.record import PeerRecord

__all__ = ["NEAR", "UNKNOWN", "known_links"]

UNKNOWN = Link(delay=0.02, bandwidth=12.5e6)  # of a pair nobody has measured: a good home line
NEAR = 0.01  # s, one way; closer than this nobody is preferred for it: what peers say of their speed is less exact


def known_links(
    me: PeerId, delays: Mapping[PeerId, float], silences: Mapping[PeerId, float], records: Iterable[PeerRecord]
) -> Links:
    """`delays`: seconds one way from `me`; `silences`: what it must be at least, to those who have not answered yet.
    What `records` say of their peers' neighbours is believed: who lies about it can as well lie about its speed."""
    known = {(me, peer): max(UNKNOWN.delay, delay) for peer, delay in silences.items()}
    known |= {(me, peer): max(NEAR, delay) for peer, delay in delays.items()}
    known |= {(record.peer, peer): max(NEAR, delay) for record in records for peer, delay in record.near}
    return Links(UNKNOWN, {pair: Link(delay, UNKNOWN.bandwidth) for pair, delay in known.items()}, origin=me)
