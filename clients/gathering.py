"""One product for all threads that need it in one moment: who finds it idle computes for all who wait by then."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Gathering"]

MAX_ROWS = 64  # of one product: its results are as wide as a vocabulary
PATIENCE = 30.0  # seconds; a thread whose turn does not come computes alone

Function = Callable[[Tensor], Tensor]


class _Seat:
    """One caller's rows [n, width], and what became of them."""

    __slots__ = ("error", "result", "rows")

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.result: Tensor | None = None
        self.error: Exception | None = None

    @property
    def served(self) -> bool:
        return self.result is not None or self.error is not None


class Gathering:
    """Calls a function that treats each row by itself, for many threads at once. Copies of it share nothing."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[_Seat] = []
        self._busy = False

    def __reduce__(self) -> Any:
        return Gathering, ()

    @property
    def waiting(self) -> int:
        """Callers that nobody computes for yet."""
        return len(self._waiting)

    def call(self, function: Function, rows: Tensor) -> Tensor:
        """`function(rows)`, or its error. Whoever calls at the same time calls for the same function."""
        if len(rows) > MAX_ROWS:
            return function(rows)
        seat = _Seat(rows)
        seats = self._turn(seat)
        if seats:
            self._serve(function, seats)
        if seat.error is not None:
            raise seat.error
        return function(rows) if seat.result is None else seat.result

    def _turn(self, seat: _Seat) -> list[_Seat]:
        """Waits until others have served `seat`, then nothing is left to do; or until it is this thread's turn to serve
        the result."""
        with self._changed:
            self._waiting.append(seat)
            try:
                came = self._changed.wait_for(lambda: seat.served or not self._busy, PATIENCE)
            finally:
                if seat in self._waiting:
                    self._waiting.remove(seat)
            if seat.served or not came:
                return []
            self._busy = True
            return [seat, *self._others(MAX_ROWS - len(seat.rows))]

    def _others(self, room: int) -> list[_Seat]:
        """Those who wait, as many as fit."""
        taken: list[_Seat] = []
        while self._waiting and len(self._waiting[0].rows) <= room:
            taken.append(self._waiting.pop(0))
            room -= len(taken[-1].rows)
        return taken

    def _serve(self, function: Function, seats: Sequence[_Seat]) -> None:
        try:
            results = function(torch.cat([seat.rows for seat in seats]) if len(seats) > 1 else seats[0].rows)
            for seat, result in zip(seats, torch.split(results, [len(s.rows) for s in seats]), strict=True):
                seat.result = result
        except Exception as error:  # it is raised where it belongs
            for seat in seats:
                seat.error = error
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
