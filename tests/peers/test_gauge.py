from peers.executor_settings import ExecutorStats
from peers.gauge import Counts, Gauge
from peers.stats import EngineStats


def stats(tokens: int, pid: int = 1, **others: float) -> ExecutorStats:
    return ExecutorStats(engine=EngineStats(tokens_done=tokens, **others), pid=pid)  # type: ignore[arg-type]


def gauge_after(*samples: tuple[float, ExecutorStats]) -> Gauge:
    gauge = Gauge()
    for now, each in samples:
        gauge.note(each, now)
    return gauge


def test_nothing_noted_is_nothing_done() -> None:
    gauge = Gauge()
    assert (gauge.counts, gauge.rate, gauge.batch, gauge.busy, gauge.history) == (Counts(), 0.0, None, 0.0, ())


def test_tokens_that_were_known_already_or_learned_from_are_served_as_well() -> None:
    gauge = gauge_after((0, stats(0)), (1, stats(10, tokens_shared=5, tokens_trained=7)))
    assert gauge.counts.tokens == 22


def test_count_goes_on_when_the_executor_is_started_again() -> None:
    silent = ExecutorStats()  # a new one, before it has spoken
    gauge = gauge_after((0, stats(100)), (1, silent), (2, stats(7, pid=2)), (3, stats(9, pid=2)))
    assert gauge.counts.tokens == 109


def test_rate_batch_and_share_are_those_of_the_last_seconds() -> None:
    gauge = Gauge()
    for second in range(100):
        gauge.note(stats(0, batches=7, rows_done=1000), second)
    for second in range(100, 111):
        done = second - 100
        gauge.note(stats(40 * done, batches=7 + 10 * done, rows_done=1000 + 40 * done, busy_seconds=0.5 * done), second)
    assert (gauge.rate, gauge.batch, gauge.busy) == (40.0, 4.0, 0.5)
    assert gauge.history[-11:] == (0.0,) + 10 * (40.0,)


def test_only_the_last_minute_is_kept() -> None:
    gauge = gauge_after(*((second, stats(second)) for second in range(1000)))
    assert len(gauge.history) == 60


def test_samples_at_one_moment_have_no_rate() -> None:
    gauge = gauge_after((5, stats(1)), (5, stats(9)))
    assert (gauge.rate, gauge.history) == (0.0, ())
