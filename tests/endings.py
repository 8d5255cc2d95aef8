"""Processes that are expected to end."""

import time

import psutil

__all__ = ["wait_for_end"]

PATIENCE = 30.0  # seconds


def wait_for_end(process: psutil.Process) -> None:
    """Until `process`, which need not be our child, is gone or waits only to be reaped."""
    deadline = time.monotonic() + PATIENCE
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{process} lives on"
        time.sleep(0.05)
