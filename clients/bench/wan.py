"""`swarm bench wan`: one session over peers that are far from each other, and where its time goes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from clients.bench.answers import new_prompt
from clients.bench.drafted import Drafted, DraftReport, ask_drafted
from clients.bench.far import FarAway, Line, free_ports
from clients.bench.fleet import Fleet
from clients.bench.reference import BITS
from clients.bench.steps import Profile
from clients.bench.trial import Layout, WanTrial, shares
from swarm.bystanders import Bystanders
from swarm.checkpoint import Checkpoint, resolve
from swarm.dtypes import DTYPES
from swarm.errors import SwarmError
from swarm.figures import Spread, new_table, publish
from swarm.rates import threads

__all__ = ["WanReport", "run"]

HEADER = 200  # bytes of a frame besides hidden states, about; and of what libp2p adds


@dataclass(frozen=True, slots=True)
class WanReport:
    """Milliseconds a token takes, and what for: of the round that is the median. `over` is the whole over delays and
    all computing, `strict` over delays and the hops' computing alone; from round to round."""

    whole: float
    delays: float
    compute: float
    client: float
    queue: float
    sending: float  # at the line's bandwidth
    late: float  # the lines' own error
    rest: float  # daemons, sockets, wake-ups
    over: Spread
    strict: Spread

    @classmethod
    def of(cls, trial: WanTrial, profiles: Sequence[Profile], token_bytes: int, late: float) -> "WanReport":
        """`profiles`: of each round. `late`: seconds that each passing of a line was late. Raises SwarmError when
        something did not take the lines."""
        turns = trial.peers + 1
        delays = turns * trial.delay * 1000
        middle = sorted(profiles, key=lambda profile: profile.whole)[len(profiles) // 2]
        if min(profile.network for profile in profiles) < delays:
            raise SwarmError(
                f"a token spent {middle.network:.1f} ms between peers, less than {turns} delays: some of what they say "
                "found a way around the lines, so nothing can be said of them"
            )
        sending = turns * (token_bytes + HEADER) / trial.bandwidth * 1000
        lateness = turns * late * 1000
        return cls(
            whole=middle.whole,
            delays=delays,
            compute=middle.compute,
            client=middle.client,
            queue=middle.queue,
            sending=sending,
            late=lateness,
            rest=middle.network - delays - sending - lateness,
            over=Spread.of([each.whole / (delays + each.compute + each.client) for each in profiles]),
            strict=Spread.of([each.whole / (delays + each.compute) for each in profiles]),
        )

    def tables(self, trial: WanTrial) -> Iterator[Table]:
        title = f"{trial.peers} hops, {trial.delay * 1000:g} ms one way: medians (lowest to highest)"
        table = new_table(title, "", "")
        table.add_row("time per token over delays and computing", str(self.over))
        table.add_row("time per token over delays and the hops' computing", str(self.strict))
        yield table
        table = new_table("where a token's time goes", "", "ms")
        for name, value in self._parts(trial):
            table.add_row(name, f"{value:.2f}")
        yield table

    def _parts(self, trial: WanTrial) -> Iterator[tuple[str, float]]:
        yield "whole", self.whole
        yield f"{trial.peers + 1} delays", self.delays
        yield "computing in hops", self.compute
        yield "client: head, sampling, embedding", self.client
        yield "queues in hops", self.queue
        yield "bytes at the lines' bandwidth", self.sending
        yield "the lines' own lateness", self.late
        yield "daemons, sockets, wake-ups", self.rest


def run(trial: WanTrial, notes: Console) -> None:
    """Measure and print. Raises SwarmError."""
    checkpoint = resolve(trial.model, cache=trial.cache)
    shares(checkpoint.num_blocks, trial.peers)  # before anything is started
    with FarAway(free_ports(trial.peers), Line(trial.delay, trial.bandwidth)) as far:
        rounds, others = _measure(trial, checkpoint, far, notes)
    token_bytes = checkpoint.hidden_size * BITS[trial.client_precision] // 8
    report = WanReport.of(trial, [each.profile for each in rounds], token_bytes, far.said.get("late", 0.0))
    settings = {**asdict(trial), "cache": str(trial.cache)}
    figures = {"settings": settings, **asdict(report), "lines": far.said, "others": others}
    tables = list(report.tables(trial))
    if trial.draft_length:
        drafts = DraftReport.of(
            [each.drafted for each in rounds if each.drafted is not None],
            [each.profile.whole / 1000 for each in rounds],
            acceptance=trial.acceptance,
            length=trial.draft_length,
        )
        tables.append(_drafts_table(drafts))
        figures["drafts"] = asdict(drafts)
    publish("wan", tables, figures, alone=notes.quiet)


def _drafts_table(drafts: DraftReport) -> Table:
    table = new_table(
        f"drafts of {drafts.length} tokens, {drafts.acceptance:.0%} right: medians (lowest to highest)", "", ""
    )
    table.add_row("tokens of a trip", str(drafts.per_trip))
    table.add_row(f"over the {drafts.expected:.2f} that are expected", str(drafts.share))
    table.add_row("tokens per second over those without", str(drafts.faster))
    return table


@dataclass(frozen=True, slots=True)
class _Round:
    profile: Profile
    drafted: Drafted | None


def _measure(trial: WanTrial, checkpoint: Checkpoint, far: FarAway, notes: Console) -> tuple[list[_Round], float]:
    """Of each round after the first, which warms up; and how many processors worked for others."""
    notes.print(f"starting {trial.peers} peers, {trial.delay * 1000:g} ms from each other …")
    with ExitStack() as stack:
        fleet = stack.enter_context(
            Fleet(
                trial.model,
                trial.cache,
                checkpoint,
                Layout(trial.peers, trial.precision),
                peer_threads=trial.peer_threads,
                client_threads=trial.client_threads,
                client_dtype=DTYPES[trial.client_precision],
                options=far.peer_options,
            )
        )
        with Bystanders() as bystanders:
            rounds = [_ask(trial, checkpoint, fleet, number, notes) for number in range(trial.rounds + 1)]
        notes.print(str(bystanders))
    return rounds[1:], bystanders.cores


def _ask(trial: WanTrial, checkpoint: Checkpoint, fleet: Fleet, number: int, notes: Console) -> _Round:
    """Raises SwarmError when the chain is not what it should be."""
    prompt = new_prompt(checkpoint.config.get_text_config().vocab_size, trial.prompt_tokens, number)
    fleet.steps.clear()
    (answer,) = fleet.ask([prompt], trial.new_tokens)
    steps = fleet.steps.decoding(1)
    if any(len(step.trace) != trial.peers for step in steps):
        raise SwarmError(f"the chain had not always {trial.peers} hops, so its time can't be held against their delays")
    per_token = (answer.at[-1] - answer.at[0]) / (len(answer.at) - 1)
    notes.print(f"  {number or 'warm-up'}: {per_token * 1000:.1f} ms a token, first after {answer.first:.2f} s")
    profile = Profile.of(steps, [answer])
    if not trial.draft_length:
        return _Round(profile, None)
    with threads(trial.client_threads):
        drafted = ask_drafted(
            fleet.model,
            prompt,
            answer.tokens,
            acceptance=trial.acceptance,
            length=trial.draft_length,
            seed=number,
        )
    notes.print(f"     with drafts: {drafted.seconds / drafted.tokens * 1000:.1f} ms a token, {drafted.trips} trips")
    return _Round(profile, drafted)
