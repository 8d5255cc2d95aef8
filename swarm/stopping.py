"""How a process is told to stop: SIGTERM, SIGINT, SIGHUP, or the end of its standard input.

Being told cancels the work, which cleans up. Being told again cancels the cleaning up, and a little later the process
ends whatever is still going on.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable

__all__ = ["told_by", "until_told"]

_log = logging.getLogger(__name__)

FORCE_SECONDS = 3.0  # between being told a second time and the end
STDIN = 0  # the file descriptor; read without Python's buffers, whose lock would hang the interpreter's end


def told_by(error: asyncio.CancelledError) -> signal.Signals | None:
    """The signal because of which work was cancelled; None for other reasons."""
    reason = error.args[0] if error.args else None
    return reason if isinstance(reason, signal.Signals) else None


class _Teller:
    def __init__(self, task: "asyncio.Task[object]") -> None:
        self.first: signal.Signals | None = None
        self._task = task

    def tell(self, number: signal.Signals) -> None:
        self._task.cancel(number)
        if self.first is not None:
            asyncio.get_running_loop().call_later(FORCE_SECONDS, os._exit, 128 + number)
        self.first = self.first or number


async def until_told(work: Awaitable[object], *, stdin: bool = False) -> int:
    """Awaits `work` in the main thread's loop; returns the exit status, 0 or 130 after SIGINT. `stdin`: stop when
    standard input ends, too."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    teller = _Teller(task)
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)  # as under nohup
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        loop.add_signal_handler(number, teller.tell, number)
    if stdin:
        threading.Thread(target=_watch_stdin, args=(loop, teller), name="standard input", daemon=True).start()
    try:
        await work
    except asyncio.CancelledError:
        if teller.first is None:
            raise
    except Exception as error:
        if teller.first is None:
            raise
        # whoever stops a whole process group stops our children as well: no failure of ours
        _log.info("while leaving: %s", error)
    return 128 + signal.SIGINT if teller.first is signal.SIGINT else 0


def _watch_stdin(loop: asyncio.AbstractEventLoop, teller: _Teller) -> None:
    while True:
        try:
            ended = not os.read(STDIN, 4096)
        except OSError:  # closed
            ended = True
        if ended:
            break
    if not loop.is_closed():
        loop.call_soon_threadsafe(teller.tell, signal.SIGTERM)
