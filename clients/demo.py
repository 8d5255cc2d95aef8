"""`swarm demo`: four real peers on this machine, an answer through them, and a peer killed in the middle of it."""

import os
from typing import Annotated

import typer

from clients.options import CacheDir
from swarm.catalogue import default_cache
from swarm.errors import SwarmError, UsageError
from swarm.terminal import quiet_libraries

__all__ = ["demo"]

PROMPT = "Explain in a few sentences why the sky is blue."


def demo(
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = PROMPT,
    model: Annotated[str, typer.Option(help="The model to serve and to ask.")] = "smollm2",
    max_new_tokens: Annotated[int, typer.Option(min=8, help="Length of the answer at most.")] = 96,
    kill_after: Annotated[int, typer.Option(min=1, help="Kill a peer after so many tokens.")] = 24,
    stay: Annotated[
        bool, typer.Option("--stay", help="Leave the swarm up afterwards, with a gateway to it, until Ctrl-C.")
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="With --stay, open the gateway's page in a browser.")
    ] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Start a small swarm on this machine, ask it something, and kill a peer in mid-answer.

    Each of the four peers hosts half of the blocks, chosen by placement; the answer is compared with the same model run
    in one process. With --stay a gateway serves a chat page and the OpenAI API from them until Ctrl-C.
    """
    if open_page and not stay:
        raise UsageError("--open is for the page of a demo that stays: give --stay, too")
    if kill_after >= max_new_tokens:
        raise UsageError("--kill-after must be smaller than --max-new-tokens, or nothing is killed in mid-answer")
    quiet_libraries(os.environ)
    from clients.showcase import Plot, show  # brings torch and hivemind, which help does not need

    plot = Plot(model, cache_dir or default_cache(os.environ), prompt, max_new_tokens, kill_after, stay, open_page)
    if not show(plot):
        raise SwarmError("the answer differs from that of the same model in one process: please report this")
