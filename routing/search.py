"""The search under the planner: the cheapest way through all blocks, by dynamic programming over (block, peer).

Peers and blocks are indices here and costs are arrays; `routing.chains` gives them their meaning.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Field", "Floats", "Ints", "Leg", "shortest_ring"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Leg = tuple[int, int, int]  # peer, first block, end block

BRANCHES = 64  # ways around repeated peers that are tried before one hop is made as long as can be


@dataclass(frozen=True)
class Field:
    """N peers and B blocks."""

    holds: NDArray[np.bool_]  # (N, B) which peer may compute which block
    block: Floats  # (N,) cost of one block
    enter: Floats  # (N,) cost of coming from the source, this peer's fixed costs included
    leave: Floats  # (N,) cost of going on to the sink
    cross: Callable[[Ints, Ints], Floats]  # R peers, C peers → (R, C) cost of going on, fixed costs included


def shortest_ring(field: Field, width: int) -> list[Leg]:
    """The cheapest legs over blocks 0..B that visit no peer twice; every block must be held by some peer.

    At most about `width` peers are looked at for each block. A cheapest way that comes back to a peer is resolved by
    branching on a block that the peer did not compute in between: it computes only blocks before it, only blocks after
    it, or that block as well. One of the three is true of any way without repetition, so the result stays exact.
    """
    kept = _shortlist(field, width)
    order = count()  # breaks ties of the heap
    heap: list[tuple[float, int, list[Leg], NDArray[np.bool_]]] = []

    def push(holds: NDArray[np.bool_]) -> None:
        found = _shortest(replace(field, holds=holds), kept)
        if found is not None:
            heapq.heappush(heap, (found[0], next(order), found[1], holds))

    push(field.holds)
    for _ in range(BRANCHES):
        if not heap:
            break
        _, _, legs, holds = heapq.heappop(heap)
        repeated = _repetition(legs)
        if repeated is None:
            return legs
        for branch in _branches(holds, *repeated):
            push(branch)
    return _fewest(field)


def _shortlist(field: Field, width: int) -> Ints:
    """Peers that are among the `width` most promising of some block, by cost per block up to their span's end."""
    peers, blocks = field.holds.shape
    if field.holds.sum(axis=0).max() <= width:
        return np.arange(peers)
    keep = np.zeros(peers, dtype=np.bool_)
    ends = blocks - np.argmax(field.holds[:, ::-1], axis=1)
    fixed = field.enter
    for b in range(blocks):
        holders = np.flatnonzero(field.holds[:, b])
        score = fixed[holders] / (ends[holders] - b) + field.block[holders]
        keep[holders[np.argsort(score, kind="stable")[:width]]] = True
    return np.flatnonzero(keep)


def _shortest(field: Field, kept: Ints) -> tuple[float, list[Leg]] | None:
    """The cheapest legs over the `kept` peers, repeated peers allowed; None where a block has no holder."""
    holds = field.holds[kept]  # (K, B)
    if not holds.any(axis=0).all():
        return None
    holders = [kept[column] for column in holds.T]
    cost = field.enter[holders[0]] + field.block[holders[0]]
    parents: list[Ints] = []  # parents[b][i]: position in holders[b] of where holders[b + 1][i] comes from
    cross: Floats | None = None
    for b, (rows, columns) in enumerate(pairwise(holders)):
        moved = b == 0 or not (holds[:, b - 1] == holds[:, b]).all() or not (holds[:, b] == holds[:, b + 1]).all()
        if cross is None or moved:
            cross = field.cross(rows, columns)
            cross[rows[:, None] == columns[None, :]] = 0.0  # staying costs nothing
        total = cost[:, None] + cross  # (R, C)
        parents.append(total.argmin(axis=0))
        cost = total.min(axis=0) + field.block[columns]
    final = cost + field.leave[holders[-1]]
    last = int(final.argmin())
    return float(final[last]), _legs(holders, parents, last)


def _legs(holders: Sequence[Ints], parents: Sequence[Ints], last: int) -> list[Leg]:
    path = [int(holders[-1][last])]
    for b in range(len(parents) - 1, -1, -1):
        last = int(parents[b][last])
        path.append(int(holders[b][last]))
    path.reverse()
    starts = [b for b in range(len(path)) if b == 0 or path[b] != path[b - 1]]
    return [(path[start], start, end) for start, end in pairwise([*starts, len(path)])]


def _repetition(legs: Sequence[Leg]) -> tuple[int, int] | None:
    """A peer that comes back, and the first block that another one computed in between."""
    left: dict[int, int] = {}
    for peer, _, end in legs:
        if peer in left:
            return peer, left[peer]
        left[peer] = end
    return None


def _branches(holds: NDArray[np.bool_], peer: int, block: int) -> list[NDArray[np.bool_]]:
    before, after, through = holds.copy(), holds.copy(), holds.copy()
    before[peer, block:] = False
    after[peer, : block + 1] = False
    through[:, block] = False
    through[peer, block] = holds[peer, block]
    return [before, after, through]


def _fewest(field: Field) -> list[Leg]:
    """The fewest legs, the cheaper peer where two reach equally far: always without repetition, rarely the fastest."""
    blocks = field.holds.shape[1]
    legs: list[Leg] = []
    at = 0
    while at < blocks:
        holders = np.flatnonzero(field.holds[:, at])
        gone = ~field.holds[holders, at:]  # (H, B - at)
        ends = np.where(gone.any(axis=1), at + gone.argmax(axis=1), blocks)
        best = int(np.lexsort((field.block[holders], -ends))[0])
        legs.append((int(holders[best]), at, int(ends[best])))
        at = int(ends[best])
    return legs
