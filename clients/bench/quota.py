"""Processes held to a share of a core by Linux, as if each group of them had a slow machine of its own."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from swarm.errors import UsageError

__all__ = ["Quotas"]

ROOTS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))  # of version 1 and 2
PERIOD = 20_000  # µs; short, so that nobody stands still for long


class Quotas:
    """A context manager: within, each of `groups`, processes with all below them, has `cores` of a processor at most.
    Raises UsageError where that can't be done."""

    def __init__(self, groups: Sequence[int], cores: float) -> None:
        self._groups = groups
        self._quota = round(cores * PERIOD)
        self._homes: list[tuple[Path, list[int]]] = []

    def __enter__(self) -> Self:
        root = next((root for root in ROOTS if (root / "cgroup.procs").exists()), None)
        try:
            if root is None:
                raise OSError("there are no control groups")
            for index, pid in enumerate(self._groups):
                self._hold(root, root / f"swarm-bench-{os.getpid()}-{index}", pid)
        except (OSError, psutil.Error) as error:
            self._let_go()
            raise UsageError(f"--cores-each takes Linux, and the right to make control groups: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._let_go()

    def _hold(self, root: Path, home: Path, pid: int) -> None:
        process = psutil.Process(pid)
        members = [each.pid for each in (process, *process.children(recursive=True))]
        home.mkdir()
        self._homes.append((home, members))
        if (home / "cpu.cfs_quota_us").exists():
            (home / "cpu.cfs_period_us").write_text(str(PERIOD))
            (home / "cpu.cfs_quota_us").write_text(str(self._quota))
        else:
            (home / "cpu.max").write_text(f"{self._quota} {PERIOD}")
        for member in members:
            (home / "cgroup.procs").write_text(str(member))

    def _let_go(self) -> None:
        homes, self._homes = self._homes, []
        for home, _ in homes:
            for member in (home / "cgroup.procs").read_text().split():
                with suppress(OSError):  # it has ended
                    (home.parent / "cgroup.procs").write_text(member)
            home.rmdir()
