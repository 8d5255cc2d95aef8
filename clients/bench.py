"""`swarm bench`: a swarm on this machine against the same model in one process, measured in turn."""

import os
from typing import Annotated

import typer

from clients.options import CacheDir
from swarm.catalogue import default_cache
from swarm.terminal import quiet_libraries

__all__ = ["bench"]


def bench(
    model: Annotated[str, typer.Option(help="The model to measure.")] = "smollm2",
    peers: Annotated[int, typer.Option(min=1, help="Peers of the swarm, each with an equal part of the blocks.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every process, the local one too.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=4, help="Length of the answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="How often both are measured, in turn.")] = 5,
    cache_dir: CacheDir = None,
) -> None:
    """Measure one stream over a swarm on this machine against the same model in one process.

    Both run fp32 with the same number of threads, in turn; the ratio is taken round by round, so that a machine whose
    speed drifts does not favour either. The last line on standard output is one JSON object.
    """
    quiet_libraries(os.environ)
    from clients.measuring import Trial, compare  # brings torch and hivemind, which help does not need

    compare(Trial(model, cache_dir or default_cache(os.environ), peers, threads, prompt_tokens, new_tokens, rounds))
