"""`swarm ps`: the peers and gateways of this user on this machine."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from clients.options import AsJson
from clients.terminal.sizes import ago
from swarm.running import Running, running, state_folder
from swarm.terminal import plain

__all__ = ["ps"]

WIDE = 160  # characters, where the output is no terminal


def ps(as_json: AsJson = False) -> None:
    """List the serving peers and gateways that you run on this machine.

    Each of them leaves a note in ~/.local/state/swarm while it runs; who was killed is recognised and left out.
    """
    found = running(state_folder(os.environ, Path.home()))
    if as_json:
        typer.echo(json.dumps({"running": [asdict(each) for each in found]}))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    if not found:
        console.print("Nothing of swarm runs here. A peer begins with: swarm-serve smollm2 --new-swarm")
        return
    console.print(_table(found, time.time()))


def _table(found: tuple[Running, ...], now: float) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("PID", "KIND", "MODEL", "BLOCKS", "FOR", "NAME", "ADDRESS"):
        table.add_column(name, overflow="fold", no_wrap=name in ("PID", "KIND", "BLOCKS", "FOR"))
    for each in found:
        table.add_row(
            str(each.pid),
            each.kind,
            plain(", ".join(each.models), 80),
            each.blocks or "",
            ago(now - each.started),
            plain(each.name, 24),
            plain(each.address or "", 200),
        )
    return table
