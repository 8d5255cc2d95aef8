"""The performance model: what a device, a link and a chain of them are predicted to do.

Times are seconds, sizes bytes, rates per second. Chains, placement and time limits all predict from here, so that what
is planned for and what is waited for are the same figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from routing.load import Load
from swarm.ids import PeerId
from swarm.record import PeerRecord

__all__ = ["Costs", "Link", "Links", "Pace", "Prediction", "Profile", "Stage", "predict", "time_limit"]


@dataclass(frozen=True, slots=True)
class Costs:
    """What the planner assumes beyond what is measured."""

    hop_overhead: float = 0.0005  # s a hop adds to a step: unix socket (40 us) and stream (200 us) each way, measured
    batch_tokens: int = 512  # a step waits at most for the batch in progress: decode rows go before other prompts
    spread: float = 0.05  # clients may choose peers up to this fraction worse, so that not all choose the same
    alike: float = 0.1  # peers no more than this fraction slower than another when idle are as good: load decides
    full: float = 10.0  # s of latency that is worth avoiding a peer whose KV has no room
    mixed: float = 5.0  # s of latency that is worth avoiding a peer that computes in another precision than is wanted
    width: int = 64  # peers looked at for each block


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one peer computes: `step` says how long for some tokens through some of its blocks."""

    row: float  # s a block takes for the first token of a step
    token: float  # s a block takes for each further token of it
    wait: float = 0.0  # s before a step is begun, for what others have there
    overhead: float = 0.0  # s of a step whatever its tokens

    @classmethod
    def of(cls, record: PeerRecord, costs: Costs, load: Load | None = None) -> Self:
        """From what a peer announces, and its `load`, where more than that is known of it; a long step is never taken
        for slower than one row at a time."""
        blocks = len(record.span)
        load = load or Load(record.queue)
        row = load.slow / (record.throughput * blocks)
        token = min(row, load.slow / (record.prefill * blocks))
        wait = load.slow * min(load.queue, costs.batch_tokens) / record.prefill
        return cls(row, token, wait, costs.hop_overhead)

    @property
    def fixed(self) -> float:
        """s of a step whatever its tokens and blocks."""
        return self.wait + self.overhead

    def step(self, blocks: int, tokens: int = 1) -> float:
        return self.fixed + blocks * (self.row + (tokens - 1) * self.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One device and the blocks of one model, measured when its peer joined: it predicts any number of these blocks."""

    overhead: float  # s a step takes whatever the blocks
    row: float  # s one block takes for a decode step of one row
    extra_row: float  # s each further row adds to that
    prompt_token: float  # s one block takes for each token of a prompt

    def decode(self, blocks: int, rows: int = 1) -> float:
        """Seconds of one decode step of `rows` rows through `blocks` blocks."""
        return self.overhead + blocks * (self.row + (rows - 1) * self.extra_row)

    def decode_rate(self, blocks: int, rows: int = 1) -> float:
        """Rows per second; with one row, what a record announces as `throughput`."""
        return rows / self.decode(blocks, rows)

    def prefill_rate(self, blocks: int) -> float:
        """Prompt tokens per second through `blocks` blocks: what a record announces as `prefill`."""
        return 1 / (self.prompt_token * blocks)


@dataclass(frozen=True, slots=True)
class Link:
    """The way from one peer to another."""

    delay: float  # s, one way
    bandwidth: float  # bytes per second

    def transfer(self, size: float) -> float:
        return self.delay + size / self.bandwidth

    def updated(self, sample: "Link", weight: float = 0.125) -> "Link":
        """Smoothed: `weight` is the new sample's share (1/8 as for round trips in RFC 6298)."""
        return Link(
            self.delay + weight * (sample.delay - self.delay),
            # what adds up is seconds per byte, so that is what is averaged
            1 / ((1 - weight) / self.bandwidth + weight / sample.bandwidth),
        )


HERE = Link(0.0, float("inf"))


@dataclass(frozen=True)
class Links:
    """What is known of links, and an estimate for every other pair.

    A pair known in one direction is taken to be the same in the other. Two peers of which only the ways from `origin`
    are known lie between |a - b| and a + b apart: the middle of these is the longer of the two.
    """

    default: Link
    known: Mapping[tuple[PeerId, PeerId], Link] = field(default_factory=dict)
    origin: PeerId | None = None

    def between(self, a: PeerId, b: PeerId) -> Link:
        if a == b:
            return HERE
        measured = self.measured(a, b)
        if measured is not None:
            return measured
        ways = (self.from_origin(a), self.from_origin(b))
        if ways[0] is None or ways[1] is None:
            return self.default
        return Link(max(ways[0].delay, ways[1].delay), min(ways[0].bandwidth, ways[1].bandwidth))

    def measured(self, a: PeerId, b: PeerId) -> Link | None:
        return self.known.get((a, b)) or self.known.get((b, a))

    def from_origin(self, peer: PeerId) -> Link | None:
        if self.origin is None:
            return None
        return HERE if peer == self.origin else self.measured(self.origin, peer)


@dataclass(frozen=True, slots=True)
class Stage:
    """One hop as the model sees it: the way into it, then its compute."""

    name: str
    link: Link
    seconds: float  # compute of one step, load included
    memory: int = 0  # bytes of weights and KV it takes there


@dataclass(frozen=True, slots=True)
class Prediction:
    latency: float  # s of one step around the ring
    throughput: float  # rows per second when many steps are under way at once
    uplink: float  # bytes the client sends per row and step
    memory: int  # bytes over all hops
    critical: str  # the hop or link that takes longest
    critical_seconds: float


def predict(
    stages: Sequence[Stage], back: Link, *, rows: int = 1, token_bytes: int, tokens: int | None = None
) -> Prediction:
    """One step around the ring: through `stages`, then `back` to the client.

    `tokens` is how many hidden states go down for `rows` rows (default: one each); one a row comes back. A prompt that
    is sent in chunks overlaps on the hops and arrives sooner than this.
    """
    down = (rows if tokens is None else tokens) * token_bytes
    parts = [*_parts(stages, down), ("the way back to the client", back.transfer(rows * token_bytes))]
    # a stream of steps is as fast as the slowest place where they queue; delays do not queue
    busy = [stage.seconds for stage in stages] + [down / stage.link.bandwidth for stage in stages]
    busy.append(rows * token_bytes / back.bandwidth)
    critical, longest = max(parts, key=lambda part: part[1])
    return Prediction(
        latency=sum(seconds for _, seconds in parts),
        throughput=rows / max(busy) if max(busy) > 0 else float("inf"),
        uplink=down / rows,
        memory=sum(stage.memory for stage in stages),
        critical=critical,
        critical_seconds=longest,
    )


def _parts(stages: Sequence[Stage], size: float) -> Iterable[tuple[str, float]]:
    for stage in stages:
        yield f"the way to {stage.name}", stage.link.transfer(size)
        yield f"computing {stage.name}", stage.seconds


def time_limit(predicted: float, *, floor: float, factor: float) -> float:
    """Seconds without progress after which something is wrong: `factor` times what is predicted, at least `floor`."""
    return max(floor, factor * predicted)
