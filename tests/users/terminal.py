"""A command in a terminal of its own, as a person starts it: with a screen to write to and a Ctrl-C to press."""

import errno
import fcntl
import os
import pty
import signal
import struct
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

__all__ = ["Terminal"]

COLUMNS, LINES = 80, 24
CTRL_C = b"\x03"
MARK = "SWARM_TEST_TERMINAL"  # a variable by which everything that a command started is found again


class Terminal:
    """A context manager; what is left of the command at its end is killed. `temporary`: the command's TMPDIR."""

    def __init__(self, command: Sequence[str], *, temporary: Path, environment: Mapping[str, str] = {}) -> None:
        self.temporary = temporary
        self._screen = bytearray()
        self._news = threading.Condition()
        self._ended = False
        self._mark = f"{MARK}={os.getpid()}-{id(self)}-{time.monotonic_ns()}"
        name, _, value = self._mark.partition("=")
        variables = {**os.environ, "TMPDIR": str(temporary), "TERM": "xterm", "OMP_NUM_THREADS": "1", name: value}
        variables |= environment
        variables.pop("COLUMNS", None)
        self.pid, self._master = pty.fork()
        if self.pid == 0:  # in the child, where nothing but this may run
            os.execvpe(command[0], list(command), variables)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def screen(self) -> str:
        with self._news:
            return self._screen.decode("utf-8", "replace").replace("\r\n", "\n")

    def wait_for(self, text: str, limit: float = 60.0) -> None:
        """Blocks until `text` has been shown."""
        with self._news:
            self._news.wait_for(lambda: text.encode() in self._screen or self._ended, limit)
        assert text in self.screen, f"'{text}' was not shown, but:\n{self.screen}"

    def enter(self, text: str) -> None:
        os.write(self._master, text.encode())

    def press_ctrl_c(self) -> None:
        """SIGINT for everyone in the foreground group, as a keyboard does it."""
        os.write(self._master, CTRL_C)

    def wait(self, limit: float = 30.0) -> int:
        """The exit status; minus the number of a signal that killed it."""
        status = psutil.Process(self.pid).wait(limit)
        self._reader.join(limit)
        assert status is not None
        return int(status)

    def left(self) -> list[str]:
        """What of all that the command started still runs, or lies in its temporary folder."""
        return [_name(process) for process in self._family()] + [str(path) for path in self.temporary.iterdir()]

    def _family(self) -> list[psutil.Process]:
        mine = [process for process in psutil.process_iter() if self._is_mine(process)]
        return [process for process in mine if process.pid != self.pid]

    def _is_mine(self, process: psutil.Process) -> bool:
        name, _, value = self._mark.partition("=")
        try:
            return process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):  # gone meanwhile, or none of ours
            return False

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # which is how Linux says that nobody has the other end open
                    raise
                data = b""
            with self._news:
                self._screen += data
                self._ended |= not data
                self._news.notify_all()
            if not data:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._family():
            process.kill()
        if psutil.pid_exists(self.pid) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE:
            os.kill(self.pid, signal.SIGKILL)
        self._reader.join(10)
        os.close(self._master)


def _name(process: psutil.Process) -> str:
    return " ".join(process.cmdline()) or process.name()
