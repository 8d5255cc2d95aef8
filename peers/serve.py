"""`swarm serve`: host blocks of a model for a swarm, until told to stop."""

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peers.machine import count_gpus, find_device, physical_cores
from peers.memory_budget import parse_size
from peers.pausing import Condition
from peers.settings import (
    DEVICES,
    PRECISIONS,
    QUANTIZATIONS,
    ServeSettings,
    parse_adapters,
    parse_devices,
    parse_precision,
)
from peers.several import Several, same_command, share_out
from peers.views import Noted, choose_view
from peers.watch import View
from routing.placement import REPLICAS
from swarm.catalogue import default_cache
from swarm.completion import complete_model
from swarm.door import way_in
from swarm.entrance import announced_addresses, parse_peers
from swarm.errors import UsageError
from swarm.event_loop import new_event_loop
from swarm.ids import Span
from swarm.own_swarm import OwnSwarm
from swarm.running import state_folder
from swarm.settings import data_folder, outranked
from swarm.stopping import until_told
from swarm.terminal import LogFormat, setup_logging
from swarm.waiting import wait_briefly

__all__ = ["serve"]


def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A hub id, a local folder, a .gguf file, or an alias such as smollm2.",
            autocompletion=complete_model,
        ),
    ],
    initial_peers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Join the swarm of this peer, or the one of an invite; repeat or separate by commas.",
        ),
    ] = None,
    new_swarm: Annotated[bool, typer.Option("--new-swarm", help="Begin a swarm of your own.")] = False,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="In a swarm of your own that nobody enters without an invite (make them with swarm invite).",
        ),
    ] = False,
    blocks: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Host exactly blocks A to B-1; by default the swarm's need decides."),
    ] = None,
    num_blocks: Annotated[
        int | None, typer.Option(metavar="N", help="Host N blocks; by default as many as fit into memory.")
    ] = None,
    stay: Annotated[
        bool,
        typer.Option("--stay", help="Keep the blocks that it takes first; by default it moves where it helps more."),
    ] = False,
    host: Annotated[str, typer.Option(metavar="IP", help="The address to listen on.")] = "0.0.0.0",
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="The TCP port; by default 31330 if it is free, else any.")
    ] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Tell others this address (IP, IP:PORT or /ip4/…) instead of the local ones; repeatable.",
        ),
    ] = None,
    reach: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            help="How others reach this peer: direct, relayed (through other peers, as behind a router that forwards "
            "no port), or auto, which asks initial peers to dial it.",
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help=f"{DEVICES}; several, as in cuda:0,cuda:1, have a peer each, and auto takes all GPUs. Peers "
            "share --blocks or --num-blocks, have ports and identities numbered, and all else holds for each.",
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help=f"Precision of weights and KV: {', '.join(PRECISIONS)}; named, it holds for all weights.",
        ),
    ] = "auto",
    quantization: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help=f"Fewer bits for linear layers' weights: {', '.join(QUANTIZATIONS)}; "
            "auto is what the machine does fastest within a small loss.",
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads that compute; by default one for each physical core.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for weights and KV, such as 8GB; blocks that were asked for beyond it are read from disk in "
            "every step, which is slow.",
        ),
    ] = None,
    max_vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of a GPU's memory, for weights and KV, such as 8GB; blocks that were asked for beyond it are copied "
            "there from main memory in every step.",
        ),
    ] = None,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of all sessions to keep; by default what memory allows.")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SOURCE",
            help="Host an adapter that PEFT has saved, from a folder or the hub, for all who ask by its name; "
            "repeatable.",
        ),
    ] = None,
    training_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Of the device's time, for fine-tuning while others generate here; 0 takes no fine-tuning.",
        ),
    ] = 0.1,
    pause_when: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHEN",
            help="Pause by itself: on battery, or while other programs take more than so much: cpu>60; repeatable.",
        ),
    ] = None,
    identity_path: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The key file; by default the first free one in ~/.local/share/swarm."),
    ] = None,
    public_name: Annotated[str, typer.Option(metavar="NAME", help="Shown to others in `swarm status`.")] = "",
    cache_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where converted models are kept.")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a model on the hub.")
    ] = None,
    drain_limit: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="When told to leave, serve open sessions for so long at most, while they move to other peers.",
        ),
    ] = 30.0,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby",
            help="Have blocks ready on disk, and serve them only while they have too few other peers.",
        ),
    ] = False,
    standby_below: Annotated[
        int, typer.Option(metavar="N", help="With --standby: how many peers are enough for a block.")
    ] = REPLICAS,
    log_format: Annotated[
        LogFormat, typer.Option(help="For people on stderr, or one JSON object a line on stdout.")
    ] = LogFormat.PRETTY,
    dashboard: Annotated[
        bool,
        typer.Option("--dashboard/--no-dashboard", help="On a terminal, show how the peer is; else plain lines."),
    ] = True,
    stop_with_stdin: Annotated[
        bool, typer.Option("--stop-with-stdin", hidden=True, help="Leave when standard input ends.")
    ] = False,
) -> None:
    """Serve blocks of a model to the swarm.

    Begin a swarm with --new-swarm, or join one with --initial-peers; every peer prints the line that joins it. Ctrl-C
    or SIGTERM leaves in good order: sessions move to other peers first. A second one leaves at once.
    """
    weaker = outranked(context, "initial_peers", "new_swarm") | outranked(context, "blocks", "num_blocks")
    data = data_folder(os.environ, Path.home())
    peers, invite = way_in(() if "initial_peers" in weaker else parse_peers(initial_peers or ()))
    if private and invite is not None:
        raise UsageError("--private is for a swarm of your own, and the invite is for another's: give only one of them")
    devices = parse_devices(device)
    settings = ServeSettings(
        model=model,
        initial_peers=peers,
        new_swarm=(new_swarm and "new_swarm" not in weaker) or (private and not peers),
        invite=OwnSwarm(data).found() if private else invite,
        private=private,
        pause_when=tuple(map(Condition.parse, pause_when or ())),
        blocks=Span.parse(blocks) if blocks is not None and "blocks" not in weaker else None,
        num_blocks=None if "num_blocks" in weaker else num_blocks,
        stay=stay,
        host=host,
        port=port,
        announce=announced_addresses(announce or (), port),
        reach=reach,
        device=devices[0],
        precision=parse_precision(dtype),
        quantization=parse_precision(quantization),
        threads=threads,
        max_memory=None if max_memory is None else parse_size(max_memory),
        max_vram=None if max_vram is None else parse_size(max_vram),
        kv_tokens=kv_cache_tokens,
        adapters=parse_adapters(adapters or ()),
        training_share=training_share,
        identity=identity_path,
        data=data,
        cache=cache_dir or default_cache(os.environ),
        revision=revision,
        public_name=public_name,
        drain_limit=drain_limit,
        standby=standby,
        standby_below=standby_below,
    )
    console = Console(stderr=True)
    setup_logging(log_format, console=console)
    if devices == ("auto",):
        gpus = asyncio.run(count_gpus())
        devices = tuple(f"cuda:{index}" for index in range(gpus)) if gpus > 1 else devices
    if len(devices) > 1:
        raise typer.Exit(_run_each(context, settings, devices, stop_with_stdin=stop_with_stdin))
    raise typer.Exit(_run(settings, choose_view(log_format, dashboard, console), stop_with_stdin=stop_with_stdin))


def _run(settings: ServeSettings, view: View, *, stop_with_stdin: bool) -> int:
    """The exit status."""
    wait_briefly(os.environ)
    state = state_folder(os.environ, Path.home())
    from peers.forked import fork_executor

    forked = fork_executor()  # after torch's seconds of import
    from peers.volunteer import volunteer  # brings hivemind's

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(until_told(volunteer(settings, Noted(view, state), forked), stdin=stop_with_stdin))


def _run_each(context: typer.Context, settings: ServeSettings, devices: Sequence[str], *, stop_with_stdin: bool) -> int:
    """The exit status."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        memory = runner.run(find_device("cpu")).memory
        announce = context.params["announce"] or ()
        shares = share_out(settings, announce, devices, cores=physical_cores(), memory=memory)
        several = Several(settings, shares, partial(same_command, context), state_folder(os.environ, Path.home()))
        return runner.run(until_told(several.run(), stdin=stop_with_stdin)) or several.status
