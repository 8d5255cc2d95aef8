"""`swarm doctor`: the command line, and the order of the examination."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clients.doctor.examination import PARTS, Examination
from clients.doctor.finding import Finding, Verdict
from clients.options import AsJson, CacheDir, InitialPeers
from swarm.catalogue import default_cache
from swarm.entrance import USUAL_PORT, announced_addresses
from swarm.running import state_folder
from swarm.settings import data_folder
from swarm.terminal import plain, quiet_libraries

__all__ = ["doctor"]

STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIPPED: "dim"}
LEAST_DISK_GB = 2.0  # a small model and what is made of it
WIDE = 160  # characters, where the output is no terminal


def doctor(
    context: typer.Context,
    initial_peers: InitialPeers = None,
    host: Annotated[str, typer.Option(metavar="IP", help="The address a peer would listen on.")] = "0.0.0.0",
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help=f"The port a peer would listen on; by default {USUAL_PORT}.")
    ] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="What others would be told (IP, IP:PORT or /ip4/…), as for serve."),
    ] = None,
    identity_path: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key file; by default that in ~/.local/share/swarm.")
    ] = None,
    disk_gb: Annotated[float, typer.Option(min=0, help="Gigabytes that should be free for models.")] = LEAST_DISK_GB,
    only: Annotated[str, typer.Option(metavar="NAME[,…]", help=f"Just these of: {', '.join(PARTS)}.")] = "",
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Check this machine, and its way into a swarm, and say what to do.

    With --initial-peers each of them is dialled, clocks are compared, and the directory is read; with --announce the
    address is dialled, too. Nothing is changed, and nothing is served. The exit code is 1 if anything failed.
    """
    quiet_libraries(os.environ)
    examination = Examination(
        cache=cache_dir or default_cache(os.environ),
        identity=identity_path or data_folder(os.environ, Path.home()) / "identity",
        state=state_folder(os.environ, Path.home()),
        config=context.find_root().params.get("config"),
        least_disk=int(disk_gb * 1e9),
        host=host,
        port=port,
        announce=announced_addresses(announce or (), USUAL_PORT if port is None else port),
        initial_peers=_parted(initial_peers),
    )
    found = list(examination.run(only))
    _show(found, as_json)
    raise typer.Exit(int(any(finding.verdict is Verdict.FAIL for finding in found)))


def _parted(texts: list[str] | None) -> tuple[str, ...]:
    """As they are: which of them is malformed is for the examination to say."""
    return tuple(dict.fromkeys(part for text in texts or () for part in text.replace(",", " ").split()))


def _show(found: list[Finding], as_json: bool) -> None:
    worst = any(finding.verdict is Verdict.FAIL for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": not worst, "findings": [asdict(finding) for finding in found]}))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        style = STYLES[finding.verdict]
        table.add_row(f"[{style}]{finding.verdict}[/]", finding.check, plain(finding.says, 600).replace("[", "\\["))
        if finding.todo:
            table.add_row("", "", "[bold]→[/] " + plain(finding.todo, 600).replace("[", "\\["))
    console.print(table)
    counts = {verdict: sum(finding.verdict is verdict for finding in found) for verdict in Verdict}
    console.print(f"{counts[Verdict.FAIL]} failed, {counts[Verdict.WARN]} to look at, {counts[Verdict.OK]} fine")
