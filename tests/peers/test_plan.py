from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.limits import EngineLimits
from peers.plan import Waiting, plan
from swarm.errors import UsageError

LIMITS = EngineLimits(batch_tokens=32, prompt_tokens=8, decode_tokens=4)


def decode(name: str, tokens: int = 1) -> Waiting[str]:
    return Waiting(name, tokens, 1)


def prompt(name: str, tokens: int) -> Waiting[str]:
    return Waiting(name, tokens, tokens)


def test_prompts_alone_fill_the_batch() -> None:
    assert plan([prompt("a", 100)], LIMITS) == {"a": 32}
    assert plan([prompt("a", 20), prompt("b", 100)], LIMITS) == {"a": 20, "b": 12}


def test_decoding_comes_first_and_prompts_get_their_share_after_it() -> None:
    assert plan([prompt("p", 100), decode("d")], LIMITS) == {"d": 1, "p": 8}


def test_however_many_decode_a_prompt_keeps_its_share() -> None:
    waiting = [*(decode(f"d{n}") for n in range(60)), prompt("p", 100)]
    chosen = plan(waiting, LIMITS)
    assert chosen["p"] == 8
    assert sum(chosen.values()) == 32


def test_decoding_uses_all_of_the_budget_that_prompts_do_not_need() -> None:
    waiting = [*(decode(f"d{n}") for n in range(60)), prompt("p", 5)]
    assert sum(tokens for name, tokens in plan(waiting, LIMITS).items() if name != "p") == 27


def test_a_step_of_many_single_tokens_is_split() -> None:
    assert plan([decode("a", 100)], LIMITS) == {"a": 32}


def test_nothing_waits_nothing_is_planned() -> None:
    assert plan([], LIMITS) == {}


def test_a_batch_has_room_for_both_kinds() -> None:
    with pytest.raises(UsageError, match="2 at least"):
        EngineLimits(batch_tokens=1)


waitings = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 50)), min_size=1, max_size=30).map(
    lambda pairs: [Waiting(n, tokens, min(tokens, longest)) for n, (tokens, longest) in enumerate(pairs)]
)
limits = st.builds(
    EngineLimits, batch_tokens=st.integers(2, 64), prompt_tokens=st.integers(1, 64), decode_tokens=st.integers(1, 16)
)


@given(waitings, limits)
def test_a_plan_keeps_the_budget_and_gives_nobody_more_than_waits(
    waiting: list[Waiting[int]], limits: EngineLimits
) -> None:
    chosen = plan(waiting, limits)
    assert 0 < sum(chosen.values()) <= limits.batch_tokens
    tokens = {each.session: each.tokens for each in waiting}
    assert all(0 < given <= tokens[session] for session, given in chosen.items())


arrivals = st.lists(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 50)), max_size=4), min_size=1, max_size=25
)  # (tokens, the most of one row) of those who come before each batch


@given(arrivals, limits)
def test_nobody_who_comes_later_makes_a_session_wait_longer(
    arrivals: list[list[tuple[int, int]]], limits: EngineLimits
) -> None:
    """Prompts under constant decoding, or the other way round: new ones come all the time, and none ever ends."""
    turns: list[Waiting[int]] = []
    joined: dict[int, tuple[int, int]] = {}  # the batch it came for, and how many of its class wait with it then
    served: dict[int, int] = {}
    for batch in range(len(arrivals) + sum(map(len, arrivals))):
        for tokens, longest in arrivals[batch] if batch < len(arrivals) else ():
            each = Waiting(len(joined), tokens, min(tokens, longest))
            turns.append(each)
            kind = each.longest <= limits.decode_tokens
            joined[each.session] = (batch, sum((t.longest <= limits.decode_tokens) == kind for t in turns))
        chosen = plan(turns, limits)
        for session in chosen:
            served.setdefault(session, batch)
        turns = [t for t in turns if t.session not in chosen] + [t for t in turns if t.session in chosen]
    assert all(served[session] < batch + bound for session, (batch, bound) in joined.items())


@given(waitings, limits)
def test_every_session_is_served_within_as_many_batches_as_wait_in_its_class(
    waiting: list[Waiting[int]], limits: EngineLimits
) -> None:
    """Served sessions stand last and have endless work: the worst that the others can do."""
    turns = list(waiting)
    classes = {each.session: each.longest <= limits.decode_tokens for each in waiting}
    bound = {kind: sum(k == kind for k in classes.values()) for kind in (True, False)}
    served_in: dict[int, int] = {}
    for batch in range(1, len(waiting) + 1):
        chosen: Mapping[int, int] = plan(turns, limits)
        for session in chosen:
            served_in.setdefault(session, batch)
        turns = [t for t in turns if t.session not in chosen] + [t for t in turns if t.session in chosen]
    assert all(served_in[session] <= bound[kind] for session, kind in classes.items())


def test_no_more_sessions_decode_than_should_and_prompts_get_their_share_all_the_same() -> None:
    waiting = [*(decode(f"d{n}") for n in range(6)), prompt("p", 100)]
    assert plan(waiting, LIMITS, 3) == {"d0": 1, "d1": 1, "d2": 1, "p": 8}
