"""The search under the planner: the cheapest way through all blocks, by dynamic programming over (block, peer).

Peers and blocks are indices here and costs are arrays; `routing.chains` gives them their meaning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Field", "Floats", "Ints", "Leg", "shortest_ring"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Leg = tuple[int, int, int]  # peer, first block, end block


@dataclass(frozen=True)
class Field:
    """N peers and B blocks."""

    holds: NDArray[np.bool_]  # (N, B) which peer may compute which block
    block: Floats  # (N,) cost of one block
    enter: Floats  # (N,) cost of coming from the source, this peer's fixed costs included
    leave: Floats  # (N,) cost of going on to the sink
    cross: Callable[[Ints, Ints], Floats]  # R peers, C peers → (R, C) cost of going on, fixed costs included


def shortest_ring(field: Field, width: int) -> list[Leg]:
    """The cheapest legs over blocks 0..B; every block must be held by some peer.

    At most `width` peers, the most promising, compete for the start of a hop at each block. Time O(B·K²) where K peers
    hold a block.
    """
    kept = _shortlist(field, width)
    holders = [kept[column] for column in field.holds[kept].T]
    cost = field.enter[holders[0]] + field.block[holders[0]]
    parents: list[Ints] = []  # parents[b][i]: position in holders[b] of where holders[b + 1][i] comes from
    previous: tuple[Ints, Ints] | None = None
    for rows, columns in pairwise(holders):
        if previous is None or not all(map(np.array_equal, previous, (rows, columns))):
            cross = field.cross(rows, columns)  # (R, C)
            cross[rows[:, None] == columns[None, :]] = 0.0  # staying costs nothing
        previous = (rows, columns)
        total = cost[:, None] + cross  # (R, C)
        parents.append(total.argmin(axis=0))
        cost = total.min(axis=0) + field.block[columns]
    return _legs(holders, parents, int((cost + field.leave[holders[-1]]).argmin()))


def _shortlist(field: Field, width: int) -> Ints:
    """Peers that are among the `width` most promising of some block, by cost per block up to their span's end."""
    peers, blocks = field.holds.shape
    if field.holds.sum(axis=0).max() <= width:
        return np.arange(peers)
    keep = np.zeros(peers, dtype=np.bool_)
    ends = blocks - np.argmax(field.holds[:, ::-1], axis=1)
    for b in range(blocks):
        holders = np.flatnonzero(field.holds[:, b])
        score = field.enter[holders] / (ends[holders] - b) + field.block[holders]
        keep[holders[np.argsort(score, kind="stable")[:width]]] = True
    return np.flatnonzero(keep)


def _legs(holders: Sequence[Ints], parents: Sequence[Ints], last: int) -> list[Leg]:
    path = [int(holders[-1][last])]
    for b in range(len(parents) - 1, -1, -1):
        last = int(parents[b][last])
        path.append(int(holders[b][last]))
    path.reverse()
    starts = [b for b in range(len(path)) if b == 0 or path[b] != path[b - 1]]
    return [(path[start], start, end) for start, end in pairwise([*starts, len(path)])]
