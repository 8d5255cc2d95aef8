"""`swarm finetune`: train an adapter on a file of texts, with the peers of a swarm."""

import os
from pathlib import Path
from typing import Annotated

import typer

from clients.finetune.settings import METHODS, Settings
from clients.options import (
    COMPRESSIONS,
    CacheDir,
    Codec,
    InitialPeers,
    ModelName,
    Patience,
    check_codec,
    check_compression,
    split_peers,
)
from swarm.catalogue import default_cache
from swarm.entrance import parse_peers
from swarm.terminal import LogFormat, setup_logging

__all__ = ["finetune"]


def finetune(
    model: ModelName,
    data: Annotated[str, typer.Option(help="Texts to learn from: a .jsonl or .txt file, or a dataset of the hub.")],
    output: Annotated[Path, typer.Option(help="The folder for the adapter; a run that stopped there goes on.")],
    initial_peers: InitialPeers = None,
    method: Annotated[str, typer.Option(help=f"What is trained: {', '.join(METHODS)}.")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA's matrices.")] = 8,
    virtual_tokens: Annotated[int, typer.Option(min=1, help="Length of a trained prompt or prefix.")] = 16,
    targets: Annotated[
        str, typer.Option(help="Linear layers to adapt, such as q_proj,v_proj; by default the usual ones.")
    ] = "",
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 2e-4,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 100,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a row at most.")] = 512,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut rows that are longer.")] = False,
    held_out: Annotated[float, typer.Option(help="Share of the rows to evaluate on.")] = 0.1,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 25,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 25,
    stop_after: Annotated[
        int, typer.Option(min=0, help="End after so many evaluations without a better one; 0: never.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Makes a run repeatable.")] = 0,
    sample: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="Shown answered before and after; by default no sample.")
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Train together with all who give this name and the same options."),
    ] = None,
    meet: Annotated[
        list[str] | None, typer.Option(help="With --join: address of a member, as it shows it; none to begin a run.")
    ] = None,
    local_steps: Annotated[int, typer.Option(min=1, help="With --join: steps between two exchanges.")] = 10,
    rule: Annotated[
        str, typer.Option(help="With --join: how changes are combined: mean, or median or trimmed against liars.")
    ] = "mean",
    server: Annotated[str, typer.Option(help="With --join: what steps by them: avg, avgm, adam, adamw.")] = "avg",
    server_rate: Annotated[
        float | None, typer.Option(help="With --join: its rate; by default one that suits it.")
    ] = None,
    clip: Annotated[float, typer.Option(help="With --join: the longest change of a member in a round.")] = 10.0,
    noise: Annotated[
        float, typer.Option(help="With --join: noise on each change for differential privacy, in units of --clip.")
    ] = 0.0,
    min_members: Annotated[int, typer.Option(min=1, help="With --join: who has to be there for a round.")] = 2,
    wait: Annotated[float, typer.Option(help="With --join: seconds to wait for slower members.")] = 60.0,
    host: Annotated[str, typer.Option(help="With --join: where to listen for other members.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="With --join: the port; 0 for any.")] = 0,
    announce: Annotated[
        list[str] | None, typer.Option(help="With --join: address at which members reach this machine.")
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
    settings = Settings(
        model=model,
        data=data,
        output=output,
        method=method,
        rank=rank,
        virtual_tokens=virtual_tokens,
        targets=tuple(targets.replace(",", " ").split()),
        learning_rate=learning_rate,
        batch=batch,
        steps=steps,
        length=max_length,
        truncate=truncate,
        held_out=held_out,
        evaluate_every=evaluate_every,
        save_every=save_every,
        patience=stop_after,
        seed=seed,
    )
    setup_logging(LogFormat.PRETTY)
    if join is not None:
        from clients.federated.whole import Place, Together, federate  # as below

        federate(
            settings,
            Together(
                name=join,
                local_steps=local_steps,
                rule=rule,
                server=server,
                server_rate=server_rate,
                clip=clip,
                noise=noise,
                min_members=min_members,
                wait=wait,
            ),
            Place(host=host, port=port, announce=tuple(announce or ()), meet=parse_peers(meet or ())),
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
