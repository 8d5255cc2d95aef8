"""An event loop whose clock jumps to the next timer whenever nothing else is to do: sleeps and timeouts are instant.

    run_virtual(coroutine)  ->  its result; raises Deadlock when every task waits and no timer is left

Work in threads (`asyncio.to_thread`) is waited for in real time, and the clock stands still meanwhile.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

__all__ = ["Deadlock", "VirtualLoop", "run_virtual"]

T = TypeVar("T")
THREAD_PATIENCE = 60.0  # real seconds that a thread may take


class Deadlock(AssertionError):
    """Every task waits, and nothing will ever wake one."""


class _Selector(selectors.DefaultSelector):
    """A selector that asks its loop to let time pass in place of sleeping."""

    pass_time: Callable[[float | None], bool]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if self.pass_time(timeout):
            return []
        return super().select(THREAD_PATIENCE)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now = 0.0
        self._threads = 0
        self.failures: list[BaseException] = []
        selector = _Selector()
        selector.pass_time = self._pass_time
        super().__init__(selector)
        self.set_exception_handler(VirtualLoop._note)

    def time(self) -> float:
        return self._now

    def sleep_through(self, seconds: float) -> None:
        """Time passes in which nothing here runs, as while a process is stopped."""
        self._now += seconds

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self) -> None:
        self._threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._threads -= 1

    def _thread_done(self, _: object) -> None:
        self._threads -= 1

    def _pass_time(self, timeout: float | None) -> bool:
        """Jump `timeout` ahead; False when a thread has to be waited for instead."""
        if self._threads:
            return False
        if timeout is None:
            raise Deadlock("nothing will ever happen again; waiting are:\n" + self._waiting())
        self._now += timeout
        return True

    def _waiting(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        frames = ((task, task.get_stack(limit=1)) for task in tasks)
        lines = (
            f"  {task.get_name()} at {stack[0].f_code.co_filename}:{stack[0].f_lineno}"
            for task, stack in frames
            if stack
        )
        return "\n".join(lines)

    def _note(self, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))
        if isinstance(error, BaseException) and not isinstance(error, Exception):
            self.stop()  # a test's time limit, which would only end whatever callback was running


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in virtual time. What a background task or callback raises and nobody awaits fails the run too."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        try:
            result = runner.run(main)
        except RuntimeError:
            if loop.failures:  # it was stopped
                raise loop.failures[0] from None
            raise
        if loop.failures:
            raise loop.failures[0]
    return result
