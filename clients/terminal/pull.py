"""`swarm pull`: the command line, and how the fetching is shown."""

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from clients.options import AsJson, CacheDir, ModelName
from clients.terminal.sizes import size
from swarm.catalogue import default_cache
from swarm.ids import Span
from swarm.terminal import plain, quiet_libraries

if TYPE_CHECKING:
    from swarm.checkpoint import Checkpoint

__all__ = ["pull"]


def pull(
    model: ModelName,
    blocks: Annotated[
        str | None, typer.Option(metavar="A:B", help="Only the files that hold blocks A to B-1, as a peer needs them.")
    ] = None,
    client: Annotated[bool, typer.Option("--client", help="What a client needs: embeddings and head.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a model on the hub.")
    ] = None,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Fetch a model from the hub into its cache beforehand, or convert one that came along.

    Peers and clients do so by themselves, and fetch only what they need. What was begun is gone on with.
    """
    span = None if blocks is None else Span.parse(blocks)
    quiet_libraries(os.environ)
    from clients.terminal.fetching import Part, files_to_fetch  # brings torch, which help does not need
    from swarm.checkpoint import resolve

    checkpoint = resolve(model, cache=cache_dir or default_cache(os.environ), revision=revision)
    files = files_to_fetch(checkpoint, Part(span, client))
    notes = Console(stderr=True, highlight=False, soft_wrap=True, quiet=as_json)
    fetched = _fetch_all(checkpoint, files, notes)
    if as_json:
        found = {"model": checkpoint.name, "digest": checkpoint.digest, "folder": str(checkpoint.folder)}
        typer.echo(json.dumps({**found, "files": list(files), "fetched": fetched}))
    else:
        typer.echo(f"{plain(checkpoint.name)} is in {checkpoint.folder}")


def _fetch_all(checkpoint: "Checkpoint", files: dict[str, int | None], notes: Console) -> int:
    """Bytes that came."""
    from clients.terminal.fetching import fetch

    came = 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=notes, disable=not notes.is_terminal) as bars:
        for file, total in files.items():
            task = bars.add_task(plain(file, 40), total=total)
            count = _Count(lambda more, task=task: bars.advance(task, more))  # type: ignore[misc]
            fetch(checkpoint, file, count)
            came += count.bytes
            bars.update(task, total=total or count.bytes, completed=total or count.bytes)
            if not notes.is_terminal:
                notes.print(f"{plain(file, 80)}: {size(count.bytes) if count.bytes else 'is here'}", markup=False)
    return came


class _Count:
    """Counts bytes, and hands their number on."""

    def __init__(self, then: Callable[[int], None]) -> None:
        self.bytes = 0
        self._then = then

    def __call__(self, more: int) -> None:
        self.bytes += more
        self._then(more)
