"""A gateway on this machine as a child process, for demonstrations and measurements."""

import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.subprocesses import SwarmProcess

__all__ = ["GatewayProcess", "ReadyGatewayProcess"]

COMMAND = (sys.executable, "-m", "swarm", "gateway")
ASK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ReadyGatewayProcess:
    """Where it listens: `url` is its page's, `base_url` what OpenAI's clients are given."""

    url: str
    base_url: str
    port: int


class GatewayProcess(SwarmProcess):
    """One `swarm gateway`; a context manager."""

    def __init__(
        self, arguments: Sequence[str], *, name: str = "gateway", environment: Mapping[str, str] | None = None
    ) -> None:
        """`arguments` as after `swarm gateway`."""
        self._ready: ReadyGatewayProcess | None = None
        super().__init__([*COMMAND, *arguments], name=name, environment=environment)

    def wait_ready(self, limit: float = 120.0) -> ReadyGatewayProcess:
        """Blocks until it answers. Raises SwarmError, with its last lines, if it ends or `limit` seconds pass."""
        self._wait(lambda: self._ready is not None, "is not ready", limit)
        assert self._ready is not None
        return self._ready

    @property
    def ready(self) -> ReadyGatewayProcess:
        """What it said when it was up. Raises SwarmError before that."""
        return self.wait_ready(limit=0)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of those samples of its `/metrics` that are called `name` and have these labels."""
        with urllib.request.urlopen(f"{self.ready.url}/metrics", timeout=ASK_SECONDS) as response:
            lines = response.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [line for line in lines if line.partition("{")[0].partition(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in found if all(one in line for one in wanted))

    def _hear_ready(self, event: Mapping[str, Any]) -> None:
        self._ready = ReadyGatewayProcess(event["url"], event["base_url"], event["port"])
