"""The first executor of a peer is forked off the network process before that begins anything: what both import, torch
and transformers, is imported once, which takes seconds, and is in memory once.

Only on Linux, as long as there is one thread, and where there is no GPU: what its driver has begun does not survive a
fork. Any other executor is a process from scratch (`peers.link`).
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from peers.machine import may_have_cuda

__all__ = ["Forked", "fork_executor"]


class Forked:
    """A child of this process, to be used as an `asyncio.subprocess.Process`."""

    def __init__(self, pid: int, connection: socket.socket, words: int) -> None:
        """`connection`: to its own; `words`: a pipe with what it prints. Raises OSError where the system can't tell
        when a process ends."""
        self.pid = pid
        self.connection = connection
        self.returncode: int | None = None
        self._words = words
        self._end = os.pidfd_open(pid)

    async def stdout(self) -> asyncio.StreamReader:
        """What it prints; once."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._words, "rb"))
        return reader

    async def wait(self) -> int:
        """Its exit status, or a signal's number below 0, when it has ended."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        if self.returncode is None:
            watched = os.dup(self._end)  # each that waits has its own
            loop.add_reader(watched, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(watched)
                os.close(watched)
        return self._reap()

    def kill(self) -> None:
        if self.returncode is None:  # so its number is nobody else's
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._end)
        return self.returncode


def fork_executor() -> Forked | None:
    """An executor that waits for settings; None where it has to be a process from scratch."""
    if not hasattr(os, "pidfd_open") or may_have_cuda() or threading.active_count() > 1:
        return None
    import_module("peers.executor")
    ours, theirs = socket.socketpair()
    words, voice = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    gc.freeze()  # what is here stays, and no collection touches it: touched memory is copied
    meant = signal.signal(signal.SIGINT, signal.SIG_IGN)  # for both, so that none comes in between
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads of libraries, which know of forks
        pid = os.fork()
    if not pid:
        ours.close()
        os.close(words)
        _become(theirs, voice)
    signal.signal(signal.SIGINT, meant)
    theirs.close()
    os.close(voice)
    try:
        return Forked(pid, ours, words)
    except OSError:  # an old kernel
        ours.close()
        os.close(words)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        return None


def _become(connection: socket.socket, voice: int) -> NoReturn:
    """The executor. Nothing of what surrounds the fork is gone back to."""
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for have, want in ((nothing, 0), (voice, 1), (voice, 2)):
            os.dup2(have, want)
        import_module("peers.executor").run(connection)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
