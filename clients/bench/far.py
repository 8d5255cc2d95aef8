"""Far places on this machine: a process that plays the lines to them (`clients.bench.far_process`)."""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from swarm.errors import SwarmError

__all__ = ["FarAway", "Line", "free_ports"]

ROOT = Path(__file__).resolve().parents[2]  # where `clients` can be imported from
END_SECONDS = 10.0
HOME = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Line:
    """`delay`: seconds one way. `bandwidth`: bytes per second, each way."""

    delay: float
    bandwidth: float


class FarAway:
    """A context manager. `ports[i]` leads to `targets[i]`, over a line of its own; all on loopback.

    Afterwards `said` has what it says of itself: `late` and `latest`, seconds by which things arrived later than they
    should (mean and worst), `bytes` and `connections`."""

    def __init__(self, targets: Sequence[int], line: Line) -> None:
        self._targets = tuple(targets)
        self._settings = json.dumps({"targets": self._targets, **asdict(line)})
        self._process: subprocess.Popen[str] | None = None
        self.ports: tuple[int, ...] = ()
        self.said: dict[str, float] = {}  # at its end

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clients.bench.far_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # a Ctrl-C must not cut the peers off before they have left
        )
        try:
            self.ports = tuple(self._say(self._settings)["ports"])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def peer_options(self) -> list[tuple[str, ...]]:
        """For a peer at each target, so that it is announced where its line begins."""
        pairs = zip(self._targets, self.ports, strict=True)
        return [("--port", str(target), "--announce", f"{HOME}:{port}") for target, port in pairs]

    def cut(self, index: int, dialled_from: Sequence[int] = ()) -> int:
        """Break every connection over one line, and over the others what was dialled from these ports, as if the
        machine at its end were gone; it can be dialled again at once. Returns how many there were."""
        return int(self._say(json.dumps({"line": index, "dialled_from": list(dialled_from)}))["cut"])

    def close(self) -> None:
        """Safe to repeat."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            said, _ = process.communicate(timeout=END_SECONDS)
            self.said = json.loads(said)
        except (subprocess.TimeoutExpired, ValueError):
            pass  # it was hurt; what was measured stays
        finally:
            process.kill()
            process.wait()

    def _say(self, text: str) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SwarmError("the process that plays long lines ended at once; what it said is above")
        values: dict[str, Any] = json.loads(answer)
        return values


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that nobody had a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
