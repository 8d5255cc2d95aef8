"""Which of the waiting sessions go into the next batch, and with how many tokens.

Decoding comes first, prompts fill up. Nobody starves: in each of the two classes the session at the front gets at least
one token in every batch and then stands last, so a session is served within as many batches as its class had sessions
waiting when it joined.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from peers.courtesy import Courtesy
from peers.limits import EngineLimits
from swarm.ids import PeerId

__all__ = ["Waiting", "plan", "share_out"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Waiting(Generic[K]):
    """A session with a step at the head of its inbox."""

    session: K
    tokens: int  # not yet computed, at least 1
    longest: int  # the most that one row brings


def plan(waiting: Iterable[Waiting[K]], limits: EngineLimits, most: int | None = None) -> Mapping[K, int]:
    """Tokens for each session of the next batch, `limits.batch_tokens` in all; `waiting` is in order of turn. `most`:
    sessions that decode in one batch."""
    decodes: list[Waiting[K]] = []
    prompts: list[Waiting[K]] = []
    for each in waiting:
        (decodes if each.longest <= limits.decode_tokens else prompts).append(each)
    kept = min(limits.prompt_tokens, sum(each.tokens for each in prompts), limits.batch_tokens - 1)
    chosen = _fill(decodes[:most], limits.batch_tokens - kept if decodes else 0)
    left = limits.batch_tokens - sum(chosen.values())
    return chosen | _fill(prompts, min(left, limits.prompt_tokens) if chosen else left)


def share_out(
    waiting: Sequence[tuple[PeerId, Waiting[K]]], limits: EngineLimits, courtesy: Courtesy, most: int | None = None
) -> Mapping[K, int]:
    """`plan` for sessions of several clients, of whom those held back get what `courtesy` leaves them."""
    held = courtesy.held_back({owner for owner, _ in waiting})
    late = [each for owner, each in waiting if owner in held]
    if not late:
        return plan((each for _, each in waiting), limits, most)
    first = plan((each for owner, each in waiting if owner not in held), limits, most)
    room = min(courtesy.room(held, together=bool(first)), limits.batch_tokens - sum(first.values()))
    if not first:
        return plan(late, replace(limits, batch_tokens=min(limits.batch_tokens, max(2, room))), most)
    added = _fill(late, room)
    courtesy.taken(sum(added.values()))
    return {**first, **added}


def _fill(waiting: Iterable[Waiting[K]], room: int) -> dict[K, int]:
    chosen: dict[K, int] = {}
    for each in waiting:
        if room <= 0:
            break
        chosen[each.session] = min(each.tokens, room)
        room -= chosen[each.session]
    return chosen
