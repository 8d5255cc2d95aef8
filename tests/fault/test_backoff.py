from fault.backoff import Backoff


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_failures_in_a_row_cost_twice_as_long_each() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock, base=2.0, ceiling=100.0)
    for wait in (2.0, 4.0, 8.0):
        backoff.fail("alice")
        assert backoff.next_release() == wait
        clock.now += wait
        assert backoff.avoided() == frozenset()


def test_the_wait_is_bounded() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock, base=2.0, ceiling=60.0)
    for _ in range(2000):
        backoff.fail("alice")
        clock.now += backoff.next_release() or 0.0
    backoff.fail("alice")
    assert backoff.next_release() == 60.0


def test_failure_that_many_notice_counts_once() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock, base=2.0)
    for _ in range(8):
        backoff.fail("alice")
    assert (backoff.failures("alice"), backoff.next_release()) == (1, 2.0)
    clock.now += 2.0
    for _ in range(8):
        backoff.fail("alice")
    assert (backoff.failures("alice"), backoff.next_release()) == (2, 4.0)


def test_wait_may_be_cut_short_and_rest_may_not() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock, base=16.0)
    backoff.fail("alice")
    backoff.rest("bob", 16.0)
    clock.now += 5.0
    assert backoff.avoided() == {"alice", "bob"}
    assert backoff.avoided(most=5.0) == {"bob"}
    backoff.fail("alice")
    assert backoff.avoided(most=5.0) == {"alice", "bob"}


def test_a_success_ends_the_wait() -> None:
    backoff: Backoff[str] = Backoff(Clock())
    backoff.fail("alice")
    backoff.fail("bob")
    backoff.works("alice")
    assert backoff.avoided() == {"bob"}


def test_quiet_forgives() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock, base=2.0, ceiling=10.0)
    for _ in range(2):
        backoff.fail("alice")
        clock.now += 5.0
    clock.now += 10.0
    backoff.fail("alice")
    assert backoff.next_release() == 2.0


def test_resting_is_no_failure() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock, base=2.0)
    backoff.rest("alice", 5.0)
    assert backoff.avoided() == {"alice"}
    clock.now += 5.0
    assert backoff.avoided() == frozenset()
    backoff.fail("alice")
    assert backoff.next_release() == 2.0


def test_who_fails_again_just_after_it_came_back_is_left_alone_for_longer() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock, base=2.0, ceiling=100.0)
    for wait in (2.0, 4.0, 8.0):
        backoff.fail("alice")
        assert backoff.next_release() == wait
        clock.now += wait / 2
        backoff.works("alice")
        assert backoff.avoided() == frozenset()
        clock.now += wait / 2


def test_working_for_as_long_as_the_wait_was_forgives() -> None:
    clock = Clock()
    backoff: Backoff[str] = Backoff(clock, base=2.0, ceiling=100.0)
    backoff.fail("alice")
    clock.now += 2.0
    backoff.fail("alice")
    clock.now += 4.0
    backoff.works("alice")
    assert backoff.failures("alice") == 2
    clock.now += 4.0
    assert backoff.failures("alice") == 0
    backoff.fail("alice")
    assert backoff.next_release() == 2.0
