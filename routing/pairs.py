"""Two of each kind: which of many peers that are alike are looked at when one of them is chosen."""

from collections.abc import Hashable, Sequence
from random import Random

__all__ = ["pairs"]


def pairs(
    kinds: Sequence[Hashable], idle: Sequence[float], lots: Sequence[float], *, alike: float, dice: Random
) -> list[int]:
    """Indices in order. Alike are those of one kind whose figures of `idle` are at most `alike` (a fraction) above the
    least among them; two of these are kept, the one with the least of `lots` and any other."""
    groups: list[list[int]] = []
    first: dict[Hashable, list[int]] = {}  # the group that those of a kind are put into now
    for i in sorted(range(len(kinds)), key=lambda i: (idle[i], i)):
        group = first.get(kinds[i])
        if group is None or idle[i] > idle[group[0]] * (1 + alike):
            group = first[kinds[i]] = []
            groups.append(group)
        group.append(i)
    return sorted(i for group in groups for i in _two(group, lots, dice))


def _two(group: Sequence[int], lots: Sequence[float], dice: Random) -> Sequence[int]:
    if len(group) <= 2:
        return group
    favourite = min(group, key=lambda i: lots[i])
    return favourite, dice.choice([i for i in group if i != favourite])
