"""The cost of going from one peer to another, for many pairs at once."""

from collections.abc import Sequence

import numpy as np

from routing.perf import Links
from routing.search import Floats, Ints
from swarm.record import PeerRecord

__all__ = ["Crossing"]


class Crossing:
    """Seconds from any peer to any other, `size` bytes at a time: `Links.between` as arrays, and the same figures.

    `spread` and `fixed` are factors and seconds of the peer that is gone to.
    """

    def __init__(self, peers: Sequence[PeerRecord], links: Links, size: int, spread: Floats, fixed: Floats) -> None:
        self._size, self._spread, self._fixed = size, spread, fixed
        ways = [links.from_origin(record.peer) for record in peers]
        self._delay = np.array([way.delay if way else np.nan for way in ways])
        self._byte = np.array([1 / way.bandwidth if way else np.nan for way in ways])  # s per byte
        self._default = links.default.transfer(size)
        index = {record.peer: i for i, record in enumerate(peers)}
        pairs = [(index[a], index[b], link) for (a, b), link in links.known.items() if a in index and b in index]
        measured = {(j, i): link.transfer(size) for i, j, link in pairs}
        measured |= {(i, j): link.transfer(size) for i, j, link in pairs}
        self._from = np.array([i for i, _ in measured], dtype=np.intp)
        self._to = np.array([j for _, j in measured], dtype=np.intp)
        self._measured = np.array(list(measured.values()), dtype=np.float64)

    def __call__(self, rows: Ints, columns: Ints) -> Floats:
        """R peers, C peers → (R, C) seconds."""
        delay = np.maximum.outer(self._delay[rows], self._delay[columns])
        way: Floats = delay + self._size * np.maximum.outer(self._byte[rows], self._byte[columns])
        way[np.isnan(way)] = self._default
        if len(self._measured):
            self._overwrite(way, rows, columns)
        cost: Floats = way * self._spread[columns] + self._fixed[columns]
        return cost

    def _overwrite(self, way: Floats, rows: Ints, columns: Ints) -> None:
        """Measured links take the place of estimates."""
        at_row, at_column = np.full(len(self._fixed), -1), np.full(len(self._fixed), -1)
        at_row[rows], at_column[columns] = np.arange(len(rows)), np.arange(len(columns))
        i, j = at_row[self._from], at_column[self._to]
        here = (i >= 0) & (j >= 0)
        way[i[here], j[here]] = self._measured[here]
