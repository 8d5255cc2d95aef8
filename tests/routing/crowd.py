"""Hundreds of clients that choose among equal peers by records as old as they get in a swarm."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random

from routing.chains import plan_chain
from routing.load import Loads
from routing.perf import Link, Links
from routing.view import View
from swarm.ids import PeerId, Span
from swarm.record import PeerRecord
from tests.routing.records import CLIENT, NOW, record, view

PERIOD = 20  # s between two announcements of a peer
READ = 5  # s between two readings of a client
LAN = Links(Link(0.001, 1e8))
BLOCKS = 4


@dataclass
class Chooser:
    """One client."""

    salt: bytes
    dice: Random | None
    loads: Loads = field(default_factory=Loads)

    def choose(self, seen: View, now: float) -> PeerId:
        chain = plan_chain(
            seen,
            Span(0, BLOCKS),
            links=LAN,
            source=CLIENT,
            sink=CLIENT,
            token_bytes=1000,
            salt=self.salt,
            loads=self.loads.now(seen.peers, now),
            dice=self.dice,
        )
        self.loads.opened(chain.peers[0], now)
        return chain.peers[0]


@dataclass
class Crowd:
    """`arrivals` sessions a second by `clients` in turn, each `life` seconds long on average. `two`: of two choices;
    else each takes what looks best."""

    peers: int
    clients: int = 300
    arrivals: float = 4.0
    life: float = 30.0
    two: bool = True
    random: Random = field(default_factory=lambda: Random(1))
    sessions: Counter[PeerId] = field(default_factory=Counter)
    _names: list[PeerId] = field(default_factory=list)

    def run(self, seconds: int, joins: int) -> Iterator[Counter[PeerId]]:
        """How many sessions each peer has, every second; one more peer is there after `joins` seconds."""
        choosers = [Chooser(bytes([n % 256, n // 256]), Random(n) if self.two else None) for n in range(self.clients)]
        ends: list[tuple[float, PeerId]] = []
        views: list[View] = []  # one a second
        records: dict[PeerId, PeerRecord] = {}
        begins = {PeerId(f"peer{n}"): n for n in range(self.peers)} | {PeerId("new"): joins}
        turn = count()
        for now in range(seconds):
            for peer, first in begins.items():
                if now >= first and (now - first) % PERIOD == 0:
                    records[peer] = self._announce(peer, now)
            views.append(view(BLOCKS, records.values()))
            ends = [(end, peer) for end, peer in ends if end > now or self._end(peer)]
            for _ in range(self._some()):
                number = next(turn) % self.clients
                seen = views[max(0, now - number % READ)]
                choosers[number].loads.read(seen.peers, NOW + now, now)
                peer = choosers[number].choose(seen, now)
                self.sessions[peer] += 1
                ends.append((now + self.random.expovariate(1 / self.life), peer))
            yield +self.sessions

    def _announce(self, peer: PeerId, now: int) -> PeerRecord:
        at = NOW + now
        rates = {"throughput": 50.0, "prefill": 1000.0}
        return record(
            peer, 0, BLOCKS, num_blocks=BLOCKS, queue=self.sessions[peer], issued=at, expires=at + 999, **rates
        )

    def _end(self, peer: PeerId) -> bool:
        self.sessions[peer] -= 1
        return False

    def _some(self) -> int:
        """Arrivals in this second."""
        some, left = 0, self.random.expovariate(self.arrivals)
        while left < 1:
            some, left = some + 1, left + self.random.expovariate(self.arrivals)
        return some
