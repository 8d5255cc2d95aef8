"""Adapters that peers host, as a view shows them: which one a name means."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from routing.view import View, runs
from swarm.errors import MissingBlocks, UsageError

__all__ = ["Hosted", "find_hosted", "held_wholly"]

SHOWN = 12  # names in a sentence


@dataclass(frozen=True, slots=True)
class Hosted:
    """An adapter that peers have of their own: what they call it, and the digest of all of it."""

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:8]}"


def find_hosted(view: View, name: str) -> Hosted:
    """The adapter that peers call `name`, or NAME@DIGEST with the first digits of its digest, and that is hosted for
    every block. Raises UsageError where there is none or more than one, since anybody may call anything so, and
    MissingBlocks where some block lacks a host."""
    wanted, _, digits = name.partition("@")
    held = {each: blocks for each, blocks in _held(view).items() if each.name == wanted}
    if not held:
        known = sorted({each.name for each in _held(view)})[:SHOWN]
        raise UsageError(f"no peer hosts an adapter called '{wanted[:40]}'; hosted are: {', '.join(known) or 'none'}")
    held = {each: blocks for each, blocks in held.items() if each.digest.startswith(digits)}
    if not held:
        raise UsageError(f"no peer hosts an adapter called '{wanted}' whose digest begins with {digits[:40]}")
    whole = sorted(str(each) for each, blocks in held.items() if len(blocks) == view.num_blocks)
    if len(whole) > 1:
        raise UsageError(f"different adapters are called '{wanted}': say which, {' or '.join(whole[:SHOWN])}")
    best = max(held, key=lambda each: (len(held[each]), each.digest))
    missing = tuple(block for block in range(view.num_blocks) if block not in held[best])
    if missing:
        blocks = ", ".join(map(str, runs(missing)))
        raise MissingBlocks(missing, f"no peer that holds blocks {blocks} hosts the adapter {best}: wait, or serve it")
    return best


def held_wholly(view: View) -> list[Hosted]:
    """The adapters that are hosted for every block, by name and digest."""
    whole = [each for each, blocks in _held(view).items() if len(blocks) == view.num_blocks]
    return sorted(whole, key=lambda each: (each.name, each.digest))


def _held(view: View) -> Mapping[Hosted, set[int]]:
    """Which blocks each adapter is hosted for, by peers that are online."""
    held: defaultdict[Hosted, set[int]] = defaultdict(set)
    for block in range(view.num_blocks):
        for record in view.holders(block):
            for name, digest in record.adapters:
                held[Hosted(name, digest)].add(block)
    return held
