"""The command line of `swarm bench failures`. Imports nothing heavy."""

from typing import Annotated

import typer

from clients.bench.options import MBIT, ClientThreads, PeerThreads, PromptTokens, Rounds, cache_folder, prepare
from clients.bench.trial import FailuresTrial
from clients.options import AsJson, CacheDir, ModelName
from swarm.errors import UsageError

__all__ = ["failures"]


def failures(
    model: ModelName = "smollm2",
    peers: Annotated[int, typer.Option(min=1, help="Hops of the chain; each has a spare that serves, too.")] = 3,
    probabilities: Annotated[
        str, typer.Option(metavar="P[,…]", help="With which each hop fails before a step; 0 is always measured.")
    ] = "1e-4,1e-3,1e-2",
    delay_ms: Annotated[float, typer.Option(min=0, help="Of the line in front of each peer, one way.")] = 0.0,
    bandwidth_mbit: Annotated[float, typer.Option(min=0.1, help="Of each peer's line, each way.")] = 1000.0,
    peer_threads: PeerThreads = 1,
    client_threads: ClientThreads = 1,
    prompt_tokens: PromptTokens = 16,
    new_tokens: Annotated[int, typer.Option(min=4, help="Length of an answer.")] = 1024,
    rounds: Rounds = 3,
    limit: Annotated[
        float, typer.Option(min=1, help="Give an answer up after so many times what it takes without failures.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Of prompts and failures.")] = 0,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure one session whose peers fail now and then, against doing without mending.

    A peer that fails loses every connection and with them what it held for the session; it can be dialled again at
    once, as another one that came in its place. Three remedies, in turn with the same failures: the session mends
    itself; a new one is sent all tokens so far as one prompt; a new one begins with the prompt. In the latter two the
    client knows at once what has happened. Predicted is what the mean recovery of all rounds costs so often.
    The last line on standard output is one JSON object.
    """
    trial = FailuresTrial(
        model=model,
        cache=cache_folder(cache_dir),
        peers=peers,
        delay=delay_ms / 1000,
        bandwidth=bandwidth_mbit * MBIT,
        peer_threads=peer_threads,
        client_threads=client_threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        probabilities=(0.0, *_probabilities(probabilities)),
        limit=limit,
        seed=seed,
    )
    notes = prepare(quiet=as_json)
    from clients.bench.failures import run

    run(trial, notes)


def _probabilities(text: str) -> tuple[float, ...]:
    """Those above 0."""
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = [1.0]
    if not all(0 <= value < 1 for value in values):
        raise UsageError(
            f"--probabilities takes numbers from 0 to below 1, parted by commas, as in 1e-3,0.01; not '{text}'"
        )
    return tuple(dict.fromkeys(value for value in values if value))
