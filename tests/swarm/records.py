"""Records to test with."""

import time
from dataclasses import replace
from typing import Any

from swarm.ids import Digest, PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState, Presence

MODEL = Digest("ab" * 32)
OTHER_MODEL = Digest("cd" * 32)


def record_of(peer: PeerId, **changes: Any) -> PeerRecord:
    """A good record of `peer`, issued now, with `changes`."""
    now = time.time()
    record = PeerRecord(
        contact=Contact(peer, (f"/ip4/192.0.2.7/tcp/31330/p2p/{peer}",)),
        model=MODEL,
        model_name="smollm2",
        num_blocks=30,
        span=Span(10, 20),
        state=PeerState.ONLINE,
        throughput=12.5,
        prefill=340.0,
        cache_left=8192,
        precision="fp32",
        version="0.1.0",
        public_name="Ada",
        reason="blocks 10:20 had the lowest throughput",
        queue=3,
        issued=now,
        expires=now + 60,
    )
    return replace(record, **changes)


def presence_of(peer: PeerId, run: PeerId, **changes: Any) -> Presence:
    """A good presence of `peer` in `run`, issued now, with `changes`."""
    now = time.time()
    contact = Contact(peer, (f"/ip4/192.0.2.7/tcp/31330/p2p/{peer}",))
    return replace(Presence(contact, run, issued=now, expires=now + 60), **changes)
