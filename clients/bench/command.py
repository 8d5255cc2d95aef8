"""The command lines of `swarm bench`. Imports nothing heavy: help does not need it."""

from collections.abc import Sequence
from typing import Annotated

import typer

from clients.bench.options import (
    MBIT,
    ClientThreads,
    NewTokens,
    PeerThreads,
    PromptTokens,
    Rounds,
    Threads,
    cache_folder,
    prepare,
)
from clients.bench.trial import (
    HEAD_PRECISIONS,
    SAME,
    FarTrainTrial,
    GatewayTrial,
    LocalTrial,
    SwarmTrial,
    TrainTrial,
    WanTrial,
)
from clients.options import AsJson, CacheDir, ModelName, check_compression
from swarm.errors import UsageError
from swarm.figures import whole_numbers

__all__ = ["gateway", "local", "swarm", "train", "wan"]

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")
CLIENT_PRECISIONS = ("fp32", "bf16", "fp16")

ClientDtype = Annotated[
    str, typer.Option(help="Precision of the client's head, and of what travels: fp32, bf16 or fp16.")
]


def local(
    model: ModelName = "smollm2",
    threads: Threads = 1,
    dtype: Annotated[str, typer.Option(help="Precision of weights: fp32, bf16 or fp16.")] = "fp32",
    prompt_tokens: PromptTokens = 64,
    new_tokens: NewTokens = 64,
    rounds: Rounds = 5,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure a model in one process, without a swarm, beside the least that reading its weights could take.

    The last line on standard output is one JSON object.
    """
    trial = LocalTrial(model, cache_folder(cache_dir), dtype, threads, prompt_tokens, new_tokens, rounds)
    notes = prepare(quiet=as_json)
    from clients.bench.local import run

    run(trial, notes)


def swarm(
    model: ModelName = "smollm2",
    peers: Annotated[str, typer.Option(metavar="N[,…]", help="Peers, each with an equal part of the blocks.")] = "2",
    sessions: Annotated[str, typer.Option(metavar="N[,…]", help="Answers that are generated at once.")] = "1",
    precision: Annotated[
        str, typer.Option(metavar="NAME[,…]", help=f"Of the peers' weights: {', '.join(PRECISIONS)}.")
    ] = "fp32",
    threads: Threads = 1,
    peer_threads: PeerThreads = 1,
    client_threads: ClientThreads = 1,
    client_dtype: ClientDtype = "fp32",
    client_head: Annotated[
        str | None,
        typer.Option(
            help="Precision of the client's head alone: bf16, int8 or int4, or same as the peers'; by default that of "
            "the rest of the client."
        ),
    ] = None,
    prompt_tokens: PromptTokens = 64,
    new_tokens: NewTokens = 64,
    long_prompt: Annotated[int, typer.Option(min=0, help="Measure the first token after so many, too.")] = 0,
    repeat_prompt: Annotated[int, typer.Option(min=0, help="Measure the same so many tokens twice, too.")] = 0,
    shared: Annotated[
        bool,
        typer.Option("--shared", help="Several sessions share chains, as a gateway's do, instead of a thread each."),
    ] = False,
    rounds: Rounds = 5,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure swarms on this machine against the same model in one process, in turn.

    Every combination of --peers, --precision and --sessions is a case; all its peers run while any case is measured.
    Local is fp32 under transformers with --threads, and is 1.0; ratios are taken round by round, so that a machine
    whose speed drifts favours nobody. The last line on standard output is one JSON object.
    """
    trial = SwarmTrial(
        model=model,
        cache=cache_folder(cache_dir),
        peers=whole_numbers("--peers", peers),
        sessions=whole_numbers("--sessions", sessions),
        precisions=_precisions(precision),
        threads=threads,
        peer_threads=peer_threads,
        client_threads=client_threads,
        client_precision=_one_of(CLIENT_PRECISIONS, client_dtype, "--client-dtype"),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        long_prompt=long_prompt,
        repeated_prompt=repeat_prompt,
        shared=shared,
        client_head=None if client_head is None else _one_of((*HEAD_PRECISIONS, SAME), client_head, "--client-head"),
    )
    notes = prepare(quiet=as_json)
    from clients.bench.swarm import run

    run(trial, notes)


def train(
    model: ModelName = "smollm2",
    peers: Annotated[int, typer.Option(min=1, help="Peers, each with an equal part of the blocks.")] = 2,
    threads: Threads = 2,
    peer_threads: PeerThreads = 1,
    client_threads: ClientThreads = 2,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 8,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a row.")] = 128,
    clients: Annotated[
        int, typer.Option(min=1, help="More than one: measure so many at once against one of them, without PEFT.")
    ] = 1,
    cores_each: Annotated[
        float,
        typer.Option(
            min=0,
            help="With --clients: hold each peer and client to so much of a processor, as if it had a machine of its "
            "own; takes Linux and root. 0: no limit.",
        ),
    ] = 0.0,
    rounds: Rounds = 5,
    bandwidth_mbit: Annotated[
        float | None, typer.Option(min=0.1, help="Of each peer's line, each way; measure over such lines instead.")
    ] = None,
    delay_ms: Annotated[float, typer.Option(min=0, help="With --bandwidth-mbit: of each line, one way.")] = 0,
    compress: Annotated[
        str, typer.Option(metavar="NAME[,…]", help="With --bandwidth-mbit: sums, int8 or auto, beside none.")
    ] = "auto",
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure steps of LoRA through a swarm on this machine against PEFT in one process, in turn.

    With --bandwidth-mbit, lines are played in front of the peers, and steps with each kind of --compress are measured
    against steps without, on rows of a short text that is read over and over. Each round is a step.

    The client computes the head while the peers wait, and the other way round, so threads of both may share cores.
    The last line on standard output is one JSON object.
    """
    if bandwidth_mbit is not None:
        far = FarTrainTrial(
            model=model,
            cache=cache_folder(cache_dir),
            peers=peers,
            peer_threads=peer_threads,
            client_threads=client_threads,
            rows=rows,
            length=length,
            steps=rounds + 1,  # the first warms up
            delay=delay_ms / 1000,
            bandwidth=bandwidth_mbit * MBIT,
            compress=_compressions(compress),
        )
        notes = prepare(quiet=as_json)
        from clients.bench.train_far import run as run_far

        run_far(far, notes)
        return
    trial = TrainTrial(
        model=model,
        cache=cache_folder(cache_dir),
        peers=peers,
        threads=threads,
        peer_threads=peer_threads,
        client_threads=client_threads,
        rows=rows,
        length=length,
        rounds=rounds,
        clients=clients,
        cores_each=cores_each,
    )
    if cores_each and clients == 1:
        raise UsageError("--cores-each is for several clients: give --clients 2, or more")
    notes = prepare(quiet=as_json)
    if clients > 1:
        from clients.bench.together import run_together

        run_together(trial, notes)
        return
    from clients.bench.train import run

    run(trial, notes)


def wan(
    model: ModelName = "smollm2",
    peers: Annotated[int, typer.Option(min=1, help="Peers, each with an equal part of the blocks.")] = 3,
    delay_ms: Annotated[
        float, typer.Option(min=0, help="From each peer to each other and to the client, one way.")
    ] = 25,
    bandwidth_mbit: Annotated[float, typer.Option(min=0.1, help="Of each peer's line, each way.")] = 100,
    precision: Annotated[str, typer.Option(help=f"Of the peers' weights: {', '.join(PRECISIONS)}.")] = "fp32",
    peer_threads: PeerThreads = 1,
    client_threads: ClientThreads = 1,
    client_dtype: ClientDtype = "fp32",
    prompt_tokens: PromptTokens = 64,
    new_tokens: NewTokens = 32,
    rounds: Rounds = 3,
    draft_length: Annotated[int, typer.Option(min=0, help="Measure with drafts of so many tokens, too.")] = 0,
    acceptance: Annotated[float, typer.Option(min=0, max=1, help="How often a drafted token is to be right.")] = 0.8,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure one session over peers that are far from each other: real peers here, long lines played between them.

    A token goes around the ring once, so it takes one delay for each hop and one back, and the computing: what it takes
    beyond that is shown with where it goes. Drafts are made from the answer, which is known by then, so that they are
    as good as is wanted. The last line on standard output is one JSON object.
    """
    trial = WanTrial(
        model=model,
        cache=cache_folder(cache_dir),
        peers=peers,
        precision=_precisions(precision)[0],
        delay=delay_ms / 1000,
        bandwidth=bandwidth_mbit * MBIT,
        peer_threads=peer_threads,
        client_threads=client_threads,
        client_precision=_one_of(CLIENT_PRECISIONS, client_dtype, "--client-dtype"),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        draft_length=draft_length,
        acceptance=acceptance,
    )
    notes = prepare(quiet=as_json)
    from clients.bench.wan import run

    run(trial, notes)


def gateway(
    model: ModelName = "smollm2",
    streams: Annotated[int, typer.Option(min=1, help="Answers that are streamed at once.")] = 32,
    peers: Annotated[int, typer.Option(min=1, help="Peers, each with an equal part of the blocks.")] = 3,
    peer_threads: PeerThreads = 1,
    prompt_tokens: PromptTokens = 64,
    new_tokens: NewTokens = 32,
    turns: Annotated[int, typer.Option(min=2, help="Of a chat, whose first tokens are timed.")] = 10,
    rounds: Rounds = 3,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure one gateway process against the Python client with as many sessions, over the same peers, in turn.

    Also what its users see: seconds to the first token and between tokens, and whether late turns of a chat begin as
    soon as early ones. The last line on standard output is one JSON object.
    """
    trial = GatewayTrial(
        model=model,
        cache=cache_folder(cache_dir),
        peers=peers,
        streams=streams,
        peer_threads=peer_threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        turns=turns,
    )
    notes = prepare(quiet=as_json)
    from clients.bench.gateway import run

    run(trial, notes)


def _precisions(text: str) -> tuple[str, ...]:
    names = text.replace(",", " ").split()
    for name in names:
        _one_of(PRECISIONS, name, "--precision")
    if not names:
        raise UsageError(f"--precision is one of {', '.join(PRECISIONS)}; none was given")
    return tuple(dict.fromkeys(names))


def _compressions(text: str) -> tuple[str, ...]:
    names = text.replace(",", " ").split()
    for name in names:
        check_compression(name)
    return tuple(dict.fromkeys(names))


def _one_of(names: Sequence[str], name: str, option: str) -> str:
    if name not in names:
        raise UsageError(f"{option} is one of {', '.join(names)}, not '{name}'")
    return name
