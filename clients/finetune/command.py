"""`swarm finetune`: train an adapter on a file of texts, with the peers of a swarm."""

import os
from typing import Annotated

import typer

from clients.federated.options import Place, Together
from clients.finetune.settings import Settings
from clients.grouping import grouped
from clients.options import (
    COMPRESSIONS,
    CacheDir,
    Codec,
    InitialPeers,
    Patience,
    check_codec,
    check_compression,
    split_peers,
)
from swarm.catalogue import default_cache
from swarm.terminal import LogFormat, setup_logging

__all__ = ["finetune"]


@grouped
def finetune(
    settings: Settings,
    together: Together,
    place: Place,
    initial_peers: InitialPeers = None,
    sample: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="Shown answered before and after; by default no sample.")
    ] = None,
    codec: Codec = None,
    compress: Annotated[
        str, typer.Option(help=f"For slow lines: {', '.join(COMPRESSIONS)}. Sums are exact, the latter two round.")
    ] = "none",
    patience: Patience = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end, on stdout.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Fine-tune a model that the peers of a swarm compute: your adapter, their blocks.

    The adapter, the optimizer and your texts stay here; peers see hidden states. Stop it with Ctrl-C, give the same
    command again, and it goes on from its last checkpoint. What comes out is an ordinary PEFT adapter.
    """
    peers = split_peers(initial_peers)
    check_codec(codec)
    check_compression(compress)
    setup_logging(LogFormat.PRETTY)
    if together.join is not None:
        from clients.federated.whole import federate  # as below

        federate(
            settings,
            together,
            place,
            initial_peers=peers,
            cache=cache_dir or default_cache(os.environ),
            codec=codec,
            compress=compress,
            patience=patience,
        )
        return
    from clients.finetune.whole import fine_tune  # brings torch and hivemind, which help does not need

    fine_tune(
        settings,
        initial_peers=peers,
        cache=cache_dir or default_cache(os.environ),
        codec=codec,
        compress=compress,
        patience=patience,
        sample=sample,
        as_json=as_json,
    )
