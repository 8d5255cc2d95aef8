from peers.company import Company
from swarm.ids import SessionId


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


SESSIONS = [SessionId(bytes([number] * 16)) for number in range(8)]


def busy(sessions: int = 8, *, idle: float = 0.0, turns: int = 40) -> tuple[Clock, Company]:
    """After batches of 20 ms with all sessions in each, and `idle` seconds between them."""
    clock = Clock()
    company = Company(clock)
    for _ in range(turns):
        clock.now += idle
        began = clock.now
        clock.now += 0.02
        company.computed(began, clock.now)
        for session in SESSIONS[:sessions]:
            company.came(session)
    return clock, company


def test_a_busy_hop_waits_until_half_are_together() -> None:
    clock, company = busy()
    assert company.half == 4
    assert company.patience(3, clock.now) > 0
    assert company.patience(4, clock.now) == 0


def test_it_waits_no_longer_than_a_batch_takes() -> None:
    clock, company = busy()
    since = clock.now
    assert company.patience(1, since) <= 0.02
    clock.now += 0.02
    assert company.patience(1, since) == 0


def test_one_session_and_two_never_wait() -> None:
    for sessions in (1, 2):
        clock, company = busy(sessions)
        assert company.patience(1, clock.now) == 0


def test_a_hop_that_is_mostly_idle_does_not_wait() -> None:
    clock, company = busy(idle=0.2)
    assert company.patience(1, clock.now) == 0


def test_waits_that_bring_nobody_end_the_waiting() -> None:
    clock, company = busy()
    for _ in range(200):
        since = clock.now
        while (seconds := company.patience(1, since)) > 0:
            clock.now += seconds
        clock.now += 0.08  # the time the only session that still comes is elsewhere
        for session in SESSIONS:
            company.came(session)
        began, clock.now = clock.now, clock.now + 0.02
        company.computed(began, clock.now)
    assert company.patience(1, clock.now) == 0


def test_sessions_that_came_no_more_or_left_are_not_expected() -> None:
    clock, company = busy()
    company.forget(SESSIONS[0])
    company.forget(SESSIONS[1])
    assert company.half == 3
    clock.now += 2.0
    assert company.half == 1
