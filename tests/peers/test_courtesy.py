"""Who gives way to whom, on a device that is a formula: a pass takes a fixed time and some more for each token."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean, quantiles

import pytest

from peers.courtesy import AHEAD, Courtesy
from peers.limits import EngineLimits
from peers.plan import Waiting, share_out
from swarm.ids import PeerId, SessionId, new_session_id
from tests.peers.ring import Clock

FIXED, EACH = 0.015, 0.0015  # seconds of a pass, and of each of its tokens
LIGHT, HEAVY, OTHER = PeerId("light"), PeerId("heavy"), PeerId("other")


@dataclass
class Session:
    """Asks for `tokens` again `gap` seconds after it was answered, or what `gap` says at that time."""

    owner: PeerId
    tokens: int
    gap: float | Callable[[float], float]
    begins: float = 0.0
    id: SessionId = field(default_factory=new_session_id)
    left: int = 0
    asked: float = 0.0
    took: list[tuple[float, float]] = field(default_factory=list)  # when, and how long


def play(sessions: list[Session], seconds: float) -> Counter[PeerId]:
    """Lets them ask a device for so long; tokens of each client."""
    clock, limits = Clock(), EngineLimits()
    courtesy, done = Courtesy(clock), Counter[PeerId]()
    coming = [(session.begins, number) for number, session in enumerate(sessions)]
    heapq.heapify(coming)
    turns: list[Session] = []

    def hear() -> None:
        while coming and coming[0][0] <= clock.now:
            session = sessions[heapq.heappop(coming)[1]]
            session.left, session.asked = session.tokens, clock.now
            turns.append(session)
            courtesy.came(session.owner, session.id)

    while clock.now < seconds:
        hear()
        if not turns:
            clock.now = coming[0][0]
            continue
        held = courtesy.held_back({s.owner for s in turns})
        while all(s.owner in held for s in turns) and (wait := courtesy.patience(held)) > 0:
            clock.now = min(clock.now + wait, coming[0][0] if coming else clock.now + wait)
            hear()
        waiting = [(s.owner, Waiting(s.id, s.left, s.left)) for s in turns]
        chosen = share_out(waiting, limits, courtesy)
        assert chosen
        batch = [session for session in turns if session.id in chosen]
        took = FIXED + EACH * sum(chosen.values())
        clock.now += took
        tokens = Counter[PeerId]()
        for session in batch:
            tokens[session.owner] += chosen[session.id]
            session.left -= chosen[session.id]
            turns.remove(session)
            if session.left:
                turns.append(session)
            else:
                session.took.append((clock.now, clock.now - session.asked))
                gap = session.gap(clock.now) if callable(session.gap) else session.gap
                heapq.heappush(coming, (clock.now + gap, sessions.index(session)))
        courtesy.computed(tokens, took)
        done += tokens
    return done


def steps(session: Session, since: float = 0.0) -> float:
    """The mean seconds of its steps from `since` on."""
    return mean(took for at, took in session.took if at >= since)


def slowest(session: Session, since: float = 0.0) -> float:
    """The 95th percentile of its steps' seconds."""
    return quantiles([took for at, took in session.took if at >= since], n=20)[-1]


@pytest.mark.parametrize("gap", [0.002, 0.02, 0.2])
@pytest.mark.parametrize(("count", "tokens"), [(64, 1), (64, 256), (4, 1000)])
def test_a_client_that_asks_for_much_does_not_slow_down_one_that_asks_for_little(
    gap: float, count: int, tokens: int
) -> None:
    alone = Session(LIGHT, 1, gap)
    play([alone], 10)
    light = Session(LIGHT, 1, gap)
    play([light, *(Session(HEAVY, tokens, 0.002) for _ in range(count))], 60)
    assert steps(light, since=20) + gap < 1.3 * (steps(alone) + gap)


@pytest.mark.parametrize("gap", [0.01, 0.1])
def test_nor_one_whose_answers_take_now_this_long_and_now_that(gap: float) -> None:
    def wavering() -> Session:
        dice = random.Random(5)
        return Session(LIGHT, 1, lambda _: gap * dice.uniform(0.8, 1.4))

    alone, light = wavering(), wavering()
    play([alone], 60)
    play([light, *(Session(HEAVY, 256, 0.002) for _ in range(64))], 60)
    assert slowest(light, since=20) + gap < 1.3 * (slowest(alone) + gap)


def test_who_was_slow_for_a_while_is_waited_for_again() -> None:
    """It was too slow to be waited for, and came during passes of the others from then on."""
    light = Session(LIGHT, 1, lambda now: 0.2 if 20 < now < 22 else 0.01)
    play([light, *(Session(HEAVY, 256, 0.002) for _ in range(64))], 60)
    assert steps(light, since=30) + 0.01 < 1.1 * (FIXED + EACH + 0.01) + 0.001


def test_who_had_to_wait_for_long_work_does_not_seem_slow_for_it() -> None:
    clock, session = Clock(), new_session_id()
    courtesy = Courtesy(clock)

    def step(gap: float) -> None:
        clock.now += gap
        courtesy.came(LIGHT, session)
        clock.now += FIXED
        courtesy.computed({LIGHT: 1}, FIXED)

    for _ in range(50):
        step(0.01)
    usual = courtesy.patience({HEAVY})
    clock.now += 0.2
    courtesy.worked(0.2)
    step(0.0)
    assert courtesy.patience({HEAVY}) == pytest.approx(usual, rel=0.1)


def test_before_that_it_may_use_some_seconds() -> None:
    light, heavy = Session(LIGHT, 1, 0.002), Session(HEAVY, 1000, 0.002)
    play([light, heavy], AHEAD)
    assert steps(light) > 3 * FIXED


def test_who_is_alone_is_never_held_back() -> None:
    alone = play([Session(HEAVY, 256, 0.002) for _ in range(8)], 30)
    late = Session(LIGHT, 1, 0.002, begins=1e9)
    assert play([late, *(Session(HEAVY, 256, 0.002) for _ in range(8))], 30) == alone


def test_who_was_held_back_has_it_all_when_the_other_has_gone() -> None:
    heavy = [Session(HEAVY, 256, 0.002) for _ in range(8)]
    light = Session(LIGHT, 1, 0.002)
    before = play([light, *heavy], 20)[HEAVY]
    rest = Session(LIGHT, 1, 1e9)
    after = play([rest, *(Session(HEAVY, 256, 0.002) for _ in range(8))], 20)[HEAVY]
    assert after > 3 * before


def test_two_that_ask_for_much_share_alike() -> None:
    done = play([Session(owner, 256, 0.002) for owner in (HEAVY, OTHER) for _ in range(8)], 60)
    assert done[HEAVY] == pytest.approx(done[OTHER], rel=0.1)


def test_who_asks_for_little_now_and_then_costs_others_little() -> None:
    alone = play([Session(HEAVY, 1, 0.01) for _ in range(16)], 30)[HEAVY]
    beside = play([Session(OTHER, 1, 0.5), *(Session(HEAVY, 1, 0.01) for _ in range(16))], 30)[HEAVY]
    assert beside > 0.8 * alone
