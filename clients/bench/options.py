"""What the command lines of `swarm bench` have in common. Imports nothing heavy."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from swarm.catalogue import default_cache
from swarm.terminal import quiet_libraries

__all__ = [
    "MBIT",
    "ClientThreads",
    "NewTokens",
    "PeerThreads",
    "PromptTokens",
    "Rounds",
    "Threads",
    "cache_folder",
    "prepare",
]

MBIT = 1e6 / 8  # bytes

Threads = Annotated[int, typer.Option(min=1, help="Threads of the local process.")]
PeerThreads = Annotated[int, typer.Option(min=1, help="Threads of each peer.")]
ClientThreads = Annotated[int, typer.Option(min=1, help="Threads of the swarm's client.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Length of a prompt.")]
NewTokens = Annotated[int, typer.Option(min=4, help="Length of an answer.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often everything is measured, in turn; medians count.")]


def cache_folder(given: Path | None) -> Path:
    return given or default_cache(os.environ)


def prepare(*, quiet: bool) -> Console:
    """Where progress is told; a quiet one lets tables be left out, too."""
    quiet_libraries(os.environ)
    return Console(stderr=True, highlight=False, quiet=quiet)
