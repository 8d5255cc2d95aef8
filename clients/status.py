"""`swarm status`: what a swarm's directory says of its peers, as a block map or as JSON."""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated

import typer
from rich.console import Console

from clients.drawing import as_json, render
from clients.options import InitialPeers, split_peers
from swarm.errors import NetworkError, UsageError
from swarm.event_loop import new_event_loop
from swarm.record import PeerRecord
from swarm.terminal import LogFormat, plain, setup_logging

__all__ = ["only", "read_swarm", "status"]

MIN_DIGEST = 8  # hex digits that name a model; fewer could name two


def status(
    model: Annotated[
        str | None, typer.Argument(help="Show this model only: a name, or the first 8 or more digits of its digest.")
    ] = None,
    initial_peers: InitialPeers = None,
    as_objects: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that joining and reading may take.")] = 30.0,
) -> None:
    """Show which peers hold which blocks, how fast and how full they are, and why they chose them."""
    setup_logging(LogFormat.PRETTY)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        records = runner.run(read_swarm(split_peers(initial_peers), timeout))
    if model is not None:
        records = only(model, records)
    if as_objects:
        typer.echo(json.dumps(as_json(records, time.time())))
    else:
        Console(highlight=False).print(render(records, time.time()))


async def read_swarm(initial_peers: Sequence[str], timeout: float) -> tuple[PeerRecord, ...]:  # noqa: ASYNC109
    """Every live record of the swarm, read as a client that joins and leaves. Raises NetworkError."""
    from clients.connection import join  # brings torch and hivemind, which help does not need

    try:
        async with asyncio.timeout(timeout), AsyncExitStack() as stack:
            _, directory = await join(stack, initial_peers)
            records: tuple[PeerRecord, ...] = await directory.read()
            return records
    except TimeoutError:
        raise NetworkError(f"no answer from {', '.join(initial_peers)} within {timeout:g} s") from None


def only(model: str, records: Sequence[PeerRecord]) -> tuple[PeerRecord, ...]:
    """The records of the model called `model`. Raises UsageError when nobody speaks of it."""
    found = tuple(
        record
        for record in records
        if record.model_name == model or (len(model) >= MIN_DIGEST and record.model.startswith(model))
    )
    if not found:
        served = sorted({plain(record.model_name, 80) for record in records})
        raise UsageError(f"nobody in this swarm serves {model}; served are: {', '.join(served) or 'no models'}")
    return found
