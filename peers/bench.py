"""`swarm bench peer`: the command line, which imports nothing heavy."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peers.settings import QUANTIZATIONS, parse_precision
from swarm.catalogue import default_cache
from swarm.completion import complete_model
from swarm.errors import UsageError
from swarm.figures import whole_numbers
from swarm.ids import Span
from swarm.terminal import quiet_libraries
from swarm.waiting import wait_briefly

__all__ = ["peer"]


def peer(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A hub id, a local folder, a .gguf file, or an alias such as smollm2.",
            autocompletion=complete_model,
        ),
    ] = "smollm2",
    blocks: Annotated[str | None, typer.Option(metavar="A:B", help="The span; by default all blocks.")] = None,
    rows: Annotated[str, typer.Option(metavar="N[,…]", help="Sessions that decode in one step.")] = "1,4,16,64",
    context: Annotated[int, typer.Option(min=1, help="Tokens that each of them has when it decodes.")] = 64,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt that is computed alone.")] = 512,
    dtype: Annotated[str, typer.Option(help="As for `swarm serve`.")] = "fp32",
    quantization: Annotated[str, typer.Option(help="As for `swarm serve`, but for auto.")] = "none",
    device: Annotated[str, typer.Option(help="As for `swarm serve`.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads that compute.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured, in turn.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    cache_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where converted models are kept.")] = None,
) -> None:
    """Measure one peer's span without a network: milliseconds of a step, beside the least that it could take.

    The last line on standard output is one JSON object.
    """
    numbers, span = whole_numbers("--rows", rows), Span.parse(blocks) if blocks is not None else None
    definite = [name for name in QUANTIZATIONS if name != "auto"]
    if parse_precision(quantization) not in definite:
        raise UsageError(f"--quantization is one of {', '.join(definite)} here, not '{quantization}'")
    quiet_libraries(os.environ)
    wait_briefly(os.environ)  # as in a peer
    from peers.measuring import Trial, run  # brings torch

    trial = Trial(
        model=model,
        cache=cache_dir or default_cache(os.environ),
        blocks=span,
        rows=numbers,
        context=context,
        prompt=prompt,
        dtype=parse_precision(dtype),
        quantization=parse_precision(quantization),
        device=device,
        threads=threads,
        rounds=rounds,
    )
    run(trial, Console(stderr=True, highlight=False, quiet=as_json))
