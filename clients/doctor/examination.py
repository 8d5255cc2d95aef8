"""The examination, part by part; each part loads what it needs when its turn comes."""

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clients.doctor.finding import Finding, fail, fine
from swarm.cli import COMMANDS, config_trouble
from swarm.entrance import USUAL_PORT
from swarm.errors import UsageError
from swarm.running import running
from swarm.settings import config_path

__all__ = ["PARTS", "Examination"]

PARTS = ("versions", "machine", "gpu", "files", "models", "network")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What is looked at. `config`: the file of defaults that was named; `least_disk`: bytes."""

    cache: Path
    identity: Path
    state: Path
    config: Path | None
    least_disk: int
    host: str
    port: int | None
    announce: tuple[str, ...]
    initial_peers: tuple[str, ...]

    def run(self, only: str) -> Iterable[Finding]:
        """The parts named in `only`, or all. Raises UsageError for one that there is not."""
        names = only.replace(",", " ").split() or PARTS
        if unknown := [name for name in names if name not in PARTS]:
            raise UsageError(f"--only is of {', '.join(PARTS)}, not '{unknown[0]}'")
        for part in (name for name in PARTS if name in names):
            yield from getattr(self, f"_{part}")()

    def _versions(self) -> Iterable[Finding]:
        from clients.doctor.versions import packages, python

        yield python()
        yield from packages()

    def _machine(self) -> Iterable[Finding]:
        from clients.doctor.machine import memory, open_files

        yield memory()
        yield open_files()

    def _gpu(self) -> Iterable[Finding]:
        from clients.doctor.machine import torch_and_gpu

        yield from torch_and_gpu()

    def _files(self) -> Iterable[Finding]:
        from clients.doctor.files import cache_writable, disk, identity

        yield self._config()
        yield identity(self.identity)
        yield cache_writable(self.cache)
        yield disk(self.cache, self.least_disk)

    def _config(self) -> Finding:
        path = self.config or config_path(os.environ, Path.home())
        trouble = config_trouble(self.config, COMMANDS)
        if trouble is not None:
            return fail("config file", trouble, "mend it, or name another one with --config")
        return fine("config file", f"{path}" if path.exists() else f"none ({path})")

    def _models(self) -> Iterable[Finding]:
        from clients.doctor.files import embedded_models, models

        yield from models(self.cache, os.environ)
        yield from embedded_models(self.cache)

    def _network(self) -> Iterable[Finding]:
        from clients.doctor.network import Way, addresses, port, swarm_of

        way = Way(self.host, self.port, USUAL_PORT, self.announce, self.initial_peers)
        yield port(way, running(self.state))
        yield from addresses(way)
        yield from asyncio.run(swarm_of(way))
