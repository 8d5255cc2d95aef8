"""`swarm bench peer`: an engine over one span in this process, fed with frames by hand.

A turn is what an executor does between a frame that comes and a frame that goes: parsing, planning, computing, packing.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from peers.engine import Engine
from peers.executor_settings import ExecutorSettings
from peers.limits import EngineLimits
from peers.loading import Loaded, load
from peers.precision import Precision
from peers.span import BlockSpan
from peers.span_memory import span_bytes
from swarm.bystanders import Bystanders
from swarm.checkpoint import resolve
from swarm.codecs import encode
from swarm.errors import SwarmError
from swarm.figures import Spread, new_table, publish
from swarm.ids import PeerId, RowId, SessionId, Span, new_session_id
from swarm.messages import Close, Message, Open, Out, Ready, Step, StepRow, parse
from swarm.rates import Rates, measure_rates, threads

__all__ = ["Sample", "Table", "Trial", "measure", "run", "settings_of"]

CLIENT = PeerId("bench")
ROW = RowId(1)
STEPS = 8  # of each round; their median is the round's figure
CODEC = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """`rows`: how many sessions decode at once, for each figure; each has `context` tokens, and then some more.
    `prompt`: tokens of one that is computed alone."""

    model: str
    cache: Path
    blocks: Span | None
    rows: tuple[int, ...]
    context: int
    prompt: int
    dtype: str
    quantization: str
    device: str
    threads: int
    rounds: int

    @property
    def precision(self) -> str:
        return Precision(self.dtype, self.quantization).name

    @property
    def lease(self) -> int:
        """Tokens that a session comes to; the first round warms up."""
        return self.context + (self.rounds + 1) * STEPS

    @property
    def names(self) -> dict[str, int]:
        """What is measured, and how many tokens a turn of it has."""
        return {**{f"{rows} rows": rows for rows in self.rows}, f"a prompt of {self.prompt}": self.prompt}


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of a turn, and of those the span's."""

    turn: float
    compute: float


@dataclass(frozen=True, slots=True)
class Figure:
    """Milliseconds; `least` is what reading the span's weights or the sums must take."""

    turn: Spread
    compute: Spread
    least: float
    rate: float  # tokens per second

    @classmethod
    def of(cls, samples: Sequence[Sample], tokens: int, least: float) -> "Figure":
        turn = Spread.of([1000 * sample.turn for sample in samples])
        return cls(turn, Spread.of([1000 * s.compute for s in samples]), 1000 * least, tokens / turn.median * 1000)


def run(trial: Trial, notes: Console) -> None:
    """Measure and print. Raises SwarmError."""
    checkpoint = resolve(trial.model, cache=trial.cache)
    span = trial.blocks or Span(0, checkpoint.num_blocks)
    rates = measure_rates(trial.threads)
    with threads(trial.threads):
        loaded = load(settings_of(trial, span))
        with Bystanders() as bystanders:
            samples = measure(trial, loaded, notes)
        notes.print(str(bystanders))
    rates = rates.at_best(measure_rates(trial.threads))
    figures = {
        name: Figure.of(samples[name], tokens, _least(trial, loaded, tokens, rates))
        for name, tokens in trial.names.items()
    }
    title = f"blocks {span}, {trial.precision}, {trial.threads} threads: ms, medians (lowest to highest)"
    table = new_table(title, "", "turn", "of it computing", "at least", "tokens/s")
    for name, figure in figures.items():
        table.add_row(name, str(figure.turn), str(figure.compute), f"{figure.least:.2f}", f"{figure.rate:.1f}")
    settings = {**asdict(trial), "cache": str(trial.cache), "blocks": [span.start, span.end]}
    values = {name: asdict(figure) for name, figure in figures.items()}
    publish(
        "peer",
        [table],
        {"settings": settings, "rates": asdict(rates), "others": bystanders.cores, "figures": values},
        alone=notes.quiet,
    )


def settings_of(trial: Trial, span: Span) -> ExecutorSettings:
    page = ExecutorSettings(model=trial.model, blocks=span, cache="").page_size
    return ExecutorSettings(
        model=trial.model,
        blocks=span,
        cache=str(trial.cache.absolute()),
        dtype=trial.dtype,
        quantization=trial.quantization,
        device=trial.device,
        kv_tokens=sum(trial.rows) * (trial.lease + page) + trial.prompt + page,
        threads=trial.threads,
    )


def _least(trial: Trial, loaded: Loaded, tokens: int, rates: Rates) -> float:
    """Seconds. Every weight is read once, and gives two operations a token; attention not counted."""
    checkpoint, blocks = loaded.checkpoint, loaded.span.blocks
    size = span_bytes(checkpoint, blocks, loaded.span.dtype, trial.quantization)
    weights = span_bytes(checkpoint, blocks, torch.float32) / torch.float32.itemsize
    return rates.floor(size, {trial.precision: 2 * weights * tokens})


def measure(trial: Trial, loaded: Loaded, notes: Console) -> dict[str, list[Sample]]:
    """For each of the trial's names, a sample of each round."""
    table = Table(loaded, sum(trial.rows) + 1)
    herds = {f"{rows} rows": [table.open(trial.lease) for _ in range(rows)] for rows in trial.rows}
    for herd in herds.values():
        for session in herd:
            table.turn([session], trial.context)
    found: dict[str, list[Sample]] = {name: [] for name in trial.names}
    for number in range(trial.rounds + 1):
        samples = [*(_median(table, herd) for herd in herds.values()), _prompt(table, trial.prompt)]
        notes.print(f"  {number or 'warm-up'}: {', '.join(f'{1000 * sample.turn:.1f}' for sample in samples)} ms")
        if number:
            for name, sample in zip(trial.names, samples, strict=True):
                found[name].append(sample)
    return found


def _median(table: "Table", herd: Sequence[SessionId]) -> Sample:
    """Of some decode steps of all of `herd` together."""
    samples = sorted((table.turn(herd, 1) for _ in range(STEPS)), key=lambda sample: sample.turn)
    return samples[len(samples) // 2]


def _prompt(table: "Table", tokens: int) -> Sample:
    session = table.open(tokens)
    sample = table.turn([session], tokens)
    table.close(session)
    return sample


class _Watched:
    """A span, and how many seconds it has computed."""

    def __init__(self, span: BlockSpan) -> None:
        self.seconds = 0.0
        self._span = span

    def forward(self, *arguments: Any) -> Tensor:
        begun = time.perf_counter()
        try:
            return self._span.forward(*arguments)
        finally:
            self.seconds += time.perf_counter() - begun

    def __getattr__(self, name: str) -> Any:
        return getattr(self._span, name)


class Table:
    """An engine, and a client who hands it frames and takes what comes."""

    def __init__(self, loaded: Loaded, sessions: int) -> None:
        self._hop = loaded.span.blocks
        self._width = loaded.span.hidden_size
        self._model = loaded.checkpoint.digest
        self._positions: dict[SessionId, int] = {}
        self._span = _Watched(loaded.span)
        self._engine = Engine(
            cast(BlockSpan, self._span),
            model=self._model,
            max_positions=loaded.checkpoint.max_positions,
            outbox_tokens=loaded.outbox_tokens,
            limits=EngineLimits(max_sessions=sessions, max_sessions_per_owner=sessions),
            clock=time.perf_counter,
        )

    def open(self, lease: int) -> SessionId:
        """A session with room for `lease` tokens. Raises SwarmError when the engine gives none."""
        session = new_session_id()
        opening = Open(session, self._model, self._hop, CODEC, prev=CLIENT, next=None, lease=lease)
        (answer,) = self._say(opening.pack())
        if not isinstance(answer, Ready):
            raise SwarmError(f"the engine opens no session: {answer}")
        self._positions[session] = 0
        return session

    def close(self, session: SessionId) -> None:
        list(self._say(Close(session).pack()))
        del self._positions[session]

    def turn(self, sessions: Sequence[SessionId], tokens: int) -> Sample:
        """`tokens` more for each of `sessions`, all of which are waiting when the engine begins. Raises SwarmError when
        the engine refuses."""
        frames = [self._step(session, tokens) for session in sessions]
        before, begun = self._span.seconds, time.perf_counter()
        for frame in frames:
            self._engine.receive(CLIENT, frame)
        while self._engine.step():
            pass
        sample = Sample(time.perf_counter() - begun, self._span.seconds - before)
        answers = [parse(frame) for _, frame in self._engine.outgoing()]
        wrong = [answer for answer in answers if not isinstance(answer, Out)]
        if wrong or len(answers) != len(sessions):
            raise SwarmError(f"the engine did not compute {len(sessions)} steps: {wrong[:1] or answers[:1]}")
        return sample

    def _say(self, frame: bytes) -> Iterator[Message]:
        self._engine.receive(CLIENT, frame)
        while self._engine.step():
            pass
        for _, answer in self._engine.outgoing():
            yield parse(answer)

    def _step(self, session: SessionId, tokens: int) -> bytes:
        """Random hidden states; the output of the last one alone is wanted."""
        at = self._positions[session]
        self._positions[session] = end = at + tokens
        hidden = torch.randn(tokens, self._width, generator=torch.Generator().manual_seed(at))
        return Step(session, (StepRow(ROW, at, tokens, end - 1),), CODEC, encode(hidden, CODEC)).pack()
