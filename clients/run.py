"""`swarm run`: one prompt, one answer, streamed."""

import os
import sys
from typing import Annotated

import typer

from clients.options import CacheDir, Codec, Drafting, InitialPeers, ModelName, Patience, check_codec, split_peers
from swarm.catalogue import default_cache
from swarm.errors import UsageError
from swarm.terminal import quiet_libraries

__all__ = ["run"]


def run(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from standard input.")],
    initial_peers: InitialPeers = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample among the likeliest tokens of this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="Instructions that come before the prompt.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without a chat template.")
    ] = False,
    draft: Drafting = "none",
    codec: Codec = None,
    patience: Patience = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end instead of a stream.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Generate an answer to a prompt with the peers of a swarm."""
    peers = split_peers(initial_peers)
    check_codec(codec)
    text = _read(prompt)
    quiet_libraries(os.environ)
    from clients.answer import Question, answer  # brings torch and hivemind, which help does not need

    question = Question(
        model=model,
        text=text,
        system=system,
        raw=raw,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        draft=draft,
    )
    answer(
        question,
        initial_peers=peers,
        cache=cache_dir or default_cache(os.environ),
        codec=codec,
        patience=patience,
        as_json=as_json,
    )


def _read(prompt: str) -> str:
    """The prompt itself. Raises UsageError when there is none, or it is no text."""
    try:
        text = sys.stdin.buffer.read().decode() if prompt == "-" else prompt
        text.encode()  # bytes of the command line that are no UTF-8 show themselves here
    except UnicodeError:
        raise UsageError("the prompt is no text: give it in UTF-8") from None
    if not text.strip():
        raise UsageError("the prompt is empty: give some text")
    return text
