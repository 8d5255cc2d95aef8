"""Options that several commands share, spelt once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from swarm.completion import complete_model
from swarm.entrance import parse_peers
from swarm.errors import UsageError
from swarm.messages import CODECS
from swarm.settings import outranked

__all__ = [
    "ADAPTER_BY_URL",
    "COMPRESSIONS",
    "AdapterSource",
    "ApiKey",
    "AsJson",
    "CacheDir",
    "Codec",
    "Drafting",
    "InitialPeers",
    "ModelName",
    "Patience",
    "Url",
    "check_codec",
    "check_compression",
    "split_peers",
    "swarm_or_gateway",
]

ADAPTER_BY_URL = (
    "--adapter is for a swarm that is joined: a gateway names its own, as in smollm2:NAME instead of smollm2"
)

COMPRESSIONS = ("none", "sums", "int8", "auto")  # of clients.training.compression, which is heavy

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A hub id, a local folder, a .gguf file, or an alias such as smollm2.",
        autocompletion=complete_model,
    ),
]
InitialPeers = Annotated[
    list[str] | None,
    typer.Option(help="Address of a peer of the swarm, as its join line shows it; repeat or separate by commas."),
]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Ask a gateway, or another server of the OpenAI API, instead of joining; it ends in /v1."
    ),
]
ApiKey = Annotated[str | None, typer.Option(metavar="KEY", help="For --url, where the gateway wants one.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Patience = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for blocks that are missing or peers that are full.")
]
Codec = Annotated[
    str | None,
    typer.Option(help=f"How hidden states travel: {', '.join(CODECS)}; by default without loss."),
]
Drafting = Annotated[
    str,
    typer.Option(
        metavar="none|ngram|MODEL",
        help="Who guesses the next tokens, so that peers check several in one trip: nobody, what the text repeats, "
        "or a small model with the same tokenizer, run here. The answer stays the same.",
    ),
]
AdapterSource = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="FOLDER",
        help="An adapter of PEFT to compute with, as swarm finetune writes it; or a hub id, or the name of one that "
        "peers host.",
    ),
]
CacheDir = Annotated[
    Path | None, typer.Option(help="Where converted models are kept; by default the user's cache folder.")
]


def check_codec(codec: str | None) -> None:
    """Raises UsageError for one that no peer speaks."""
    if codec is not None and codec not in CODECS:
        raise UsageError(f"--codec is one of {', '.join(CODECS)}, not '{codec}'")


def check_compression(compress: str) -> None:
    """Raises UsageError for one that there is not."""
    if compress not in COMPRESSIONS:
        raise UsageError(f"--compress is one of {', '.join(COMPRESSIONS)}, not '{compress}'")


def swarm_or_gateway(
    context: typer.Context, initial_peers: Sequence[str] | None, url: str | None
) -> tuple[tuple[str, ...], str | None]:
    """The addresses in `--initial-peers`, or what `--url` says; of two, the one that was given more directly. Raises
    UsageError."""
    weaker = outranked(context, "initial_peers", "url")
    if url is None or "url" in weaker:
        return split_peers(initial_peers), None
    if initial_peers and "initial_peers" not in weaker:
        raise UsageError("--initial-peers joins a swarm and --url asks a gateway: give only one of them")
    return (), url


def split_peers(given: Sequence[str] | None) -> tuple[str, ...]:
    """The addresses in `--initial-peers`. Raises UsageError when there are none, or not all are."""
    peers = parse_peers(given or ())
    if not peers:
        raise UsageError(
            "which swarm? Give --initial-peers with the address that a serving peer shows when it is ready, "
            "or start a swarm of your own with: swarm-serve smollm2 --new-swarm"
        )
    return peers
