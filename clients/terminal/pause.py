"""`swarm pause` and `swarm resume`: peers of this machine give their device back for a while."""

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from swarm.errors import UsageError
from swarm.running import PAUSE, RESUME, Running, running, state_folder

__all__ = ["pause", "resume"]

Pids = Annotated[list[int] | None, typer.Argument(metavar="PID", help="As `swarm ps` shows it; by default all peers.")]


def pause(pids: Pids = None) -> None:
    """Have peers on this machine take no sessions until `swarm resume`.

    Those that are open move to other peers, or end here first if nobody else can go on with them.
    """
    _tell(PAUSE, "pauses", pids)


def resume(pids: Pids = None) -> None:
    """Have peers on this machine that were paused take sessions again."""
    _tell(RESUME, "goes on", pids)


def _tell(what: signal.Signals, does: str, pids: list[int] | None) -> None:
    here = {each.pid: each for each in running(state_folder(os.environ, Path.home())) if each.kind == "peer"}
    unknown = [str(pid) for pid in pids or () if pid not in here]
    if unknown:
        raise UsageError(f"no serving peer of yours has the process number {', '.join(unknown)}: see swarm ps")
    if not here:
        raise UsageError("no peer of yours serves on this machine: see swarm ps")
    for each in [here[pid] for pid in pids] if pids else here.values():
        os.kill(each.pid, what)
        typer.echo(f"{_named(each)} {does}")


def _named(each: Running) -> str:
    return f"{each.name or 'peer'} ({each.pid}, blocks {each.blocks} of {', '.join(each.models)})"
