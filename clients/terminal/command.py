"""`swarm chat`: the command line. Imports nothing heavy: help does not need it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from clients.options import (
    ADAPTER_BY_URL,
    AdapterSource,
    ApiKey,
    CacheDir,
    Codec,
    InitialPeers,
    Patience,
    Url,
    check_codec,
    swarm_or_gateway,
)
from clients.terminal.backend import Backend, Wanted
from clients.terminal.conversation import Choosing, Conversation
from clients.terminal.conversation import load as load_chat
from swarm.catalogue import default_cache
from swarm.completion import complete_model
from swarm.errors import UsageError
from swarm.running import state_folder
from swarm.terminal import quiet_libraries

__all__ = ["chat"]


def chat(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A hub id, a local folder, a .gguf file, or an alias such as smollm2; by default a gateway's first.",
            autocompletion=complete_model,
        ),
    ] = None,
    initial_peers: InitialPeers = None,
    url: Url = None,
    api_key: ApiKey = None,
    system: Annotated[str, typer.Option(help="What the model is told before the chat.")] = "",
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this share.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer at most.")] = 1024,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    adapter: AdapterSource = None,
    load: Annotated[Path | None, typer.Option(metavar="FILE", help="Go on with a chat that /save has kept.")] = None,
    codec: Codec = None,
    patience: Patience = 30.0,
    cache_dir: CacheDir = None,
) -> None:
    """Chat with a model that the peers of a swarm compute, or through a gateway with --url.

    The peers keep the chat, so a turn costs only its own tokens. /help lists what can be typed besides questions;
    Ctrl-C stops an answer, Ctrl-D leaves. From a pipe, every line is a question, and answers are plain text.
    """
    choosing = Choosing(temperature, top_p, max_new_tokens, seed)
    conversation = load_chat(load) if load is not None else Conversation()
    conversation = Conversation(system or conversation.system, conversation.turns)
    check_codec(codec)
    peers, gateway = swarm_or_gateway(context, initial_peers, url)
    if gateway is not None and adapter is not None:
        raise UsageError(ADAPTER_BY_URL)
    cache = cache_dir or default_cache(os.environ)
    if gateway is None and model is None:
        raise UsageError("which model? Name it, as in: swarm chat smollm2 --initial-peers …")
    first = None if model is None else Wanted(model, adapter)
    connect = _connector(peers, gateway, api_key, first=first, cache=cache, codec=codec, patience=patience)
    quiet_libraries(os.environ)
    from clients.terminal.loop import converse

    kept = state_folder(os.environ, Path.home()) / "chat_history"
    name = None if first is None else first.name
    raise typer.Exit(converse(lambda: connect(name), connect, conversation, choosing, kept))


def _connector(
    peers: tuple[str, ...],
    gateway: str | None,
    api_key: str | None,
    *,
    first: Wanted | None,
    cache: Path,
    codec: str | None,
    patience: float,
) -> Callable[[str | None], Backend]:
    """What connects to a model by name: through the `gateway` if there is one, else as a member of the swarm. `first`
    may have an adapter, and then a name of its own."""

    def by_http(model: str | None) -> Backend:
        from clients.terminal.by_http import ByHttp

        assert gateway is not None
        return ByHttp(gateway, model, api_key=api_key, patience=patience)

    def join(model: str | None) -> Backend:
        from clients.terminal.joined import Joined  # brings torch and hivemind, which help does not need

        wanted = first if first is not None and model == first.name else Wanted(model or "")
        return Joined.join(wanted, initial_peers=peers, cache=cache, codec=codec, patience=patience)

    return join if gateway is None else by_http
