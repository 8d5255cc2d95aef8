"""What is to be measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import UsageError
from swarm.ids import Span

__all__ = [
    "HEAD_PRECISIONS",
    "SAME",
    "Case",
    "FailuresTrial",
    "FarTrainTrial",
    "GatewayTrial",
    "Layout",
    "LocalTrial",
    "SwarmTrial",
    "TrainTrial",
    "WanTrial",
    "shares",
]

HEAD_PRECISIONS = ("bf16", "int8", "int4")
SAME = "same"


@dataclass(frozen=True, slots=True)
class LocalTrial:
    """`rounds` greedy answers of `new_tokens` by one process."""

    model: str
    cache: Path
    precision: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Layout:
    """`peers` that share the blocks evenly, all in `precision`."""

    peers: int
    precision: str

    def __str__(self) -> str:
        return f"{self.peers} peer{'s' * (self.peers > 1)}, {self.precision}"


@dataclass(frozen=True, slots=True)
class Case:
    """`sessions` that generate at once."""

    layout: Layout
    sessions: int

    def __str__(self) -> str:
        return f"{self.layout}, {self.sessions} session{'s' * (self.sessions > 1)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmTrial:
    """Every combination of `peers`, `precisions` and `sessions`, each in turn with one process of `threads` threads.

    `long_prompt`, `repeated_prompt`: tokens of prompts of which the first token alone is measured; 0 for none.
    `shared`: sessions are answers over shared chains, as a gateway's, and not a thread each. `client_head`: precision
    of the client's head, where that is another than of the rest of the client; `SAME`: the peers', where heads have it.
    """

    model: str
    cache: Path
    peers: tuple[int, ...]
    sessions: tuple[int, ...]
    precisions: tuple[str, ...]
    threads: int
    peer_threads: int
    client_threads: int
    client_precision: str
    prompt_tokens: int
    new_tokens: int
    rounds: int
    long_prompt: int = 0
    repeated_prompt: int = 0
    shared: bool = False
    client_head: str | None = None

    def head(self, layout: Layout) -> str | None:
        """Precision of the client's head over these peers; None: that of the rest of the client."""
        if self.client_head != SAME:
            return self.client_head
        return layout.precision if layout.precision in HEAD_PRECISIONS else None

    def head_precision(self, layout: Layout) -> str:
        return self.head(layout) or self.client_precision

    @property
    def layouts(self) -> Iterator[Layout]:
        return (Layout(peers, precision) for precision in self.precisions for peers in self.peers)

    @property
    def cases(self) -> Iterator[Case]:
        return (Case(layout, sessions) for layout in self.layouts for sessions in self.sessions)


@dataclass(frozen=True, slots=True, kw_only=True)
class WanTrial:
    """One session over `peers`, each behind a line of `delay` seconds one way and `bandwidth` bytes per second; and,
    where `draft_length` is not 0, again with drafts of so many tokens, each right with probability `acceptance`."""

    model: str
    cache: Path
    peers: int
    precision: str
    delay: float
    bandwidth: float
    peer_threads: int
    client_threads: int
    client_precision: str
    prompt_tokens: int
    new_tokens: int
    rounds: int
    draft_length: int = 0
    acceptance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailuresTrial:
    """Answers of `new_tokens` over `peers` with a spare each, behind lines as of WanTrial: for each of `probabilities`
    with which each hop fails before a step, the first of which is 0, by each remedy in turn. An answer is given up
    after `limit` times what the one without failures took."""

    model: str
    cache: Path
    peers: int
    delay: float
    bandwidth: float
    peer_threads: int
    client_threads: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    probabilities: tuple[float, ...]
    limit: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTrial:
    """Steps of `rows` times `length` tokens over `peers`, each in turn with the same step in one process of `threads`
    threads; or, with several `clients`, steps of one of them in turn with those of all at once. `cores_each`: of a
    processor, what each peer and each of those clients is held to; 0 for no limit."""

    model: str
    cache: Path
    peers: int
    threads: int
    peer_threads: int
    client_threads: int
    rows: int
    length: int
    rounds: int
    clients: int = 1
    cores_each: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FarTrainTrial:
    """`steps` of `rows` times `length` tokens over `peers`, each behind a line as of WanTrial, without compression and
    with each kind of `compress`, in turn; losses are means of the `last` steps."""

    model: str
    cache: Path
    peers: int
    peer_threads: int
    client_threads: int
    rows: int
    length: int
    steps: int
    delay: float
    bandwidth: float
    compress: tuple[str, ...]
    last: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTrial:
    """`streams` through one gateway process and as many sessions of the Python client, over the same `peers`, in turn;
    and a chat of `turns`."""

    model: str
    cache: Path
    peers: int
    streams: int
    peer_threads: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    turns: int

    @property
    def sessions(self) -> SwarmTrial:
        """The same without a gateway."""
        return SwarmTrial(
            model=self.model,
            cache=self.cache,
            peers=(self.peers,),
            sessions=(self.streams,),
            precisions=("fp32",),
            threads=1,
            peer_threads=self.peer_threads,
            client_threads=1,
            client_precision="fp32",
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            rounds=self.rounds,
        )


def shares(blocks: int, peers: int) -> list[Span]:
    """`blocks` in `peers` parts that are as equal as can be. Raises UsageError when there are too few."""
    if peers > blocks:
        raise UsageError(f"--peers {peers}: this model has only {blocks} blocks to share out")
    ends = [blocks * (index + 1) // peers for index in range(peers)]
    return [Span(start, end) for start, end in zip([0, *ends], ends, strict=False)]
