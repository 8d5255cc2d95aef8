"""`swarm gateway`: a page for people and an API for programs, before the models of a swarm."""

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.options import CacheDir, Codec, InitialPeers, Patience, check_codec, split_peers
from swarm.catalogue import default_cache
from swarm.completion import complete_model
from swarm.running import announce_running, state_folder
from swarm.terminal import LogFormat, emit, setup_logging

if TYPE_CHECKING:
    from clients.gateway.ready import ReadyGateway

__all__ = ["gateway"]


def gateway(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Hub ids, local folders, .gguf files, or aliases such as smollm2; by default every model that the "
            "swarm serves and this machine has.",
            autocompletion=complete_model,
        ),
    ] = None,
    initial_peers: InitialPeers = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="An adapter of PEFT, a folder or a hub id, served as model:NAME; repeatable. Where several models are "
            "served, MODEL:NAME=FOLDER says whose it is.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(metavar="IP", help="The address to listen on; 0.0.0.0 lets other machines connect."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="The TCP port; 0 takes any that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY|FILE",
            help="A key that clients have to send, or a file with one a line; repeatable. Words behind a key belong to "
            "it: name=alice requests=60 tokens=20000 (a minute) concurrent=4. Others on this machine can see what "
            "stands on a command line, so prefer a file or SWARM_API_KEY.",
        ),
    ] = None,
    max_running: Annotated[int, typer.Option(metavar="N", help="Requests that are answered at once.")] = 64,
    queue: Annotated[
        int, typer.Option(metavar="N", help="Requests that may wait beside them; more are told to come back.")
    ] = 64,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="A certificate (PEM), for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A site whose pages may use the API, or *; repeatable. By default none."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name under which clients address this gateway, as behind a proxy."),
    ] = None,
    shutdown_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Seconds that running answers get when told to stop by SIGTERM.")
    ] = 30.0,
    codec: Codec = None,
    patience: Patience = 30.0,
    cache_dir: CacheDir = None,
    log_format: Annotated[
        LogFormat, typer.Option(help="For people on stderr, or one JSON object a line on stdout.")
    ] = LogFormat.PRETTY,
    stop_with_stdin: Annotated[
        bool, typer.Option("--stop-with-stdin", hidden=True, help="Leave when standard input ends.")
    ] = False,
) -> None:
    """Serve a chat page, the OpenAI API and a picture of the swarm, with models that its peers compute.

    Several models can be served at once. Ctrl-C leaves at once; SIGTERM lets running answers finish.
    """
    peers = split_peers(initial_peers)
    check_codec(codec)
    setup_logging(log_format)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it tells what we tell ourselves
    from clients.gateway.adapters import AdapterOption
    from clients.gateway.keys import parse_keys  # these bring the web server, which help does not need
    from clients.gateway.server import check_certificate, listen
    from clients.gateway.settings import GatewaySettings

    settings = GatewaySettings(
        models=tuple(models or ()),
        initial_peers=peers,
        adapters=tuple(map(AdapterOption.parse, adapter or ())),
        host=host,
        port=port,
        keys=parse_keys(api_key or ()),
        running=max_running,
        queue=queue,
        patience=patience,
        codec=codec,
        cache=cache_dir or default_cache(os.environ),
        tls_cert=tls_cert,
        tls_key=tls_key,
        cors_origins=tuple(cors_origin or ()),
        allowed_hosts=tuple(allow_host or ()),
        shutdown_seconds=shutdown_seconds,
    )
    check_certificate(tls_cert, tls_key)
    with listen(host, port) as sock, ExitStack() as note:  # before the wait for torch and hivemind
        from clients.gateway.running import run

        def show(ready: "ReadyGateway") -> None:
            note.enter_context(announce_running(ready.running(), state_folder(os.environ, Path.home())))  # `swarm ps`
            _show(ready, log_format)

        raise typer.Exit(run(settings, sock, show, stop_with_stdin=stop_with_stdin))


def _show(ready: "ReadyGateway", log_format: LogFormat) -> None:
    for warning in ready.warnings():
        logging.getLogger(__name__).warning("%s", warning)
    if log_format is LogFormat.JSON:
        emit("ready", **ready.event())
    else:
        print(ready.text(), flush=True)
