from peers.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy(most=5, window=600, first=0.5, longest=2)


def test_waits_double_up_to_a_limit_and_the_fifth_failure_is_one_too_many() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.note(now) for now in range(5)] == [0.5, 1.0, 2.0, 2.0, None]


def test_failures_far_apart_are_forgiven() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.note(now) for now in range(0, 10_000, 601)] == [0.5] * 17
