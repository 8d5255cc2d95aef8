"""Options that several commands share, spelt once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from swarm.errors import UsageError

__all__ = ["CacheDir", "InitialPeers", "ModelName", "Patience", "split_peers"]

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A hub id, a local folder, a .gguf file, or an alias such as smollm2.")
]
InitialPeers = Annotated[
    list[str] | None,
    typer.Option(help="Address of a peer of the swarm, as its join line shows it; repeat or separate by commas."),
]
Patience = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for blocks that are missing or peers that are full.")
]
CacheDir = Annotated[
    Path | None, typer.Option(help="Where converted models are kept; by default the user's cache folder.")
]


def split_peers(given: Sequence[str] | None) -> list[str]:
    """The addresses in `--initial-peers`. Raises UsageError when there are none."""
    peers = [part.strip() for text in given or () for part in text.split(",") if part.strip()]
    if not peers:
        raise UsageError(
            "which swarm? Give --initial-peers with the address that a serving peer shows when it is ready, "
            "or start a swarm of your own with: swarm-serve smollm2 --new-swarm"
        )
    return peers
