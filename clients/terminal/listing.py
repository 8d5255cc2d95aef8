"""`swarm list`: the models on this machine."""

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clients.options import AsJson, CacheDir
from clients.terminal.shelf import Stored, stored_models
from clients.terminal.sizes import size
from swarm.catalogue import CATALOGUE, default_cache
from swarm.terminal import plain

__all__ = ["list_models"]

WIDE = 120  # characters, where the output is no terminal


def list_models(
    everything: Annotated[bool, typer.Option("--all", help="Also the names that could be fetched.")] = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """List the models that are on this machine, whole or in part, with their size and the precision of their weights.

    Peers and clients fetch what they need by themselves; `swarm pull` does so beforehand.
    """
    found = stored_models(cache_dir or default_cache(os.environ), os.environ)
    here = {model.name for model in found}
    others = [entry for entry in CATALOGUE if entry.alias not in here]
    if as_json:
        models = [{**asdict(model), "folder": str(model.folder), "whole": model.whole} for model in found]
        known = [{"name": entry.alias, "summary": entry.summary} for entry in others]
        typer.echo(json.dumps({"models": models} | ({"others": known} if everything else {})))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    if found:
        console.print(_table(found))
    else:
        console.print("No model is here yet. `swarm pull smollm2` fetches one, `swarm list --all` shows names.")
    if everything:
        for entry in others:
            console.print(f"{entry.alias:<16} {entry.summary}", style="dim")


def _table(found: tuple[Stored, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("MODEL", "KIND", "SIZE", "BLOCKS", "WEIGHTS", "STATE"):
        table.add_column(name, overflow="fold", justify="right" if name in ("SIZE", "BLOCKS") else "left")
    for model in found:
        blocks = "" if model.blocks is None else str(model.blocks)
        weights = ", ".join(model.precisions)
        table.add_row(plain(model.name, 80), model.kind, size(model.bytes), blocks, weights, _state(model))
    return table


def _state(model: Stored) -> str:
    if model.trouble is not None:
        return plain(model.trouble, 120)
    return "whole" if model.whole else f"{model.files} of {model.wanted} files of weights"
