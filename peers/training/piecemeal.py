"""Work that is done a piece at a time: it has a thread of its own, which runs only while who wants it done waits.

So nothing happens at the same time as anything else, though the work may stop anywhere, deep inside a library, too.
"""

import math
import threading
from collections.abc import Callable

import torch

__all__ = ["Piecemeal"]


class _Abandoned(BaseException):
    """Ends work that nobody wants any more."""


class Piecemeal:
    """One work at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._until = math.inf
        self._done = self._abandoned = False
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Nothing of it is done yet."""
        assert self._thread is None
        self._done = self._abandoned = False
        self._thread = threading.Thread(target=self._work, args=(work,), name="piecemeal", daemon=True)
        self._thread.start()

    def go_on(self, seconds: float) -> bool:
        """Lets it work until it first pauses after so long; whether it is done. Raises what it raised."""
        assert self._thread is not None
        self._until = self._clock() + seconds
        self._go.release()
        self._stopped.acquire()
        if not self._done:
            return False
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None  # which holds all that the work had
        if error is not None:
            raise error
        return True

    def abandon(self) -> None:
        """It ends where it stands. Safe to repeat."""
        if self._thread is not None:
            self._abandoned = True
            self.go_on(0.0)

    def pause(self) -> None:
        """Said by the work, where others may have their turn: in its thread, or in one that it waits for."""
        if self._clock() < self._until:
            return
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def _work(self, work: Callable[[], None]) -> None:
        self._go.acquire()
        torch.get_num_threads()  # or else torch's first product here takes more threads than it was told to
        try:
            if not self._abandoned:
                work()
        except _Abandoned:
            pass
        except BaseException as error:  # is raised where it is waited for
            self._error = error
        finally:
            self._done = True
            self._stopped.release()
