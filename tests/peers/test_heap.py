"""When a peer returns memory to the system."""

from peers.heap import SECONDS, Heap


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.times: list[float] = []
        self.heap = Heap(lambda: self.now, lambda: self.times.append(self.now))

    def at(self, now: float, *, used: bool = True) -> list[float]:
        self.now = now
        if used:
            self.heap.used()
        self.heap.look()
        return self.times


def test_memory_is_returned_once_a_minute_however_much_is_computed() -> None:
    bench = Bench()
    for second in range(int(3 * SECONDS) + 1):
        bench.at(second)
    assert bench.times == [SECONDS, 2 * SECONDS, 3 * SECONDS]


def test_memory_is_left_alone_while_nothing_is_computed() -> None:
    bench = Bench()
    assert bench.at(2 * SECONDS, used=False) == []
    assert bench.at(9 * SECONDS) == [9 * SECONDS]
    assert bench.at(20 * SECONDS, used=False) == [9 * SECONDS]
