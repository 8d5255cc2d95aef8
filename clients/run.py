"""`swarm run`: one prompt, one answer, streamed."""

import os
import stat
import sys
from typing import Annotated, TextIO

import typer

from clients.options import (
    ADAPTER_BY_URL,
    AdapterSource,
    ApiKey,
    CacheDir,
    Codec,
    Drafting,
    InitialPeers,
    ModelName,
    Patience,
    Url,
    check_codec,
    swarm_or_gateway,
)
from swarm.catalogue import default_cache
from swarm.errors import UsageError
from swarm.terminal import quiet_libraries

__all__ = ["read_prompt", "run"]

MOST_BYTES = 16 << 20  # of standard input


def run(
    context: typer.Context,
    model: ModelName,
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="What to ask; - is standard input. What is piped in besides follows the prompt."
        ),
    ] = "-",
    initial_peers: InitialPeers = None,
    url: Url = None,
    api_key: ApiKey = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample among the likeliest tokens of this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="Instructions that come before the prompt.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without a chat template.")
    ] = False,
    adapter: AdapterSource = None,
    draft: Drafting = "none",
    codec: Codec = None,
    patience: Patience = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end instead of a stream.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Generate an answer to a prompt with the peers of a swarm, or through a gateway with --url.

    The prompt may come from a pipe (`echo Hi | swarm run smollm2`), and so may what it is about
    (`swarm run smollm2 "Summarise:" < file`).
    """
    peers, gateway = swarm_or_gateway(context, initial_peers, url)
    check_codec(codec)
    text = read_prompt(prompt, sys.stdin)
    if gateway is not None:
        if raw or draft != "none" or codec is not None:
            raise UsageError("--raw, --draft and --codec are for a swarm that is joined, not for --url")
        if adapter is not None:
            raise UsageError(ADAPTER_BY_URL)
        from clients.terminal.asking import ask
        from clients.terminal.conversation import Choosing

        ask(
            gateway,
            model,
            text,
            system=system,
            choosing=Choosing(temperature, top_p, max_new_tokens, seed),
            api_key=api_key,
            patience=patience,
            as_json=as_json,
        )
        return
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
        adapter=adapter,
    )
    answer(
        question,
        initial_peers=peers,
        cache=cache_dir or default_cache(os.environ),
        codec=codec,
        patience=patience,
        as_json=as_json,
    )


def read_prompt(prompt: str, stdin: TextIO) -> str:
    """The prompt, and after it what is piped in, if anything is. Raises UsageError when there is nothing, or it is no
    text."""
    try:
        given = "" if prompt == "-" else prompt
        given.encode()  # bytes of the command line that are no UTF-8 show themselves here
        piped = stdin.buffer.read(MOST_BYTES + 1) if prompt == "-" or _is_pipe(stdin) else b""
        if len(piped) > MOST_BYTES:
            raise UsageError(f"standard input holds more than {MOST_BYTES >> 20} MiB: give less")
        text = "\n\n".join(part for part in (given, piped.decode().strip()) if part)
    except UnicodeError:
        raise UsageError("the prompt is no text: give it in UTF-8") from None
    if not text.strip():
        raise UsageError("the prompt is empty: give some text")
    return text


def _is_pipe(stdin: TextIO) -> bool:
    """Whether somebody has put a pipe or a file there; a terminal, a socket or /dev/null is not read unasked."""
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
