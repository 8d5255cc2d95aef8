"""Results of a swarm's trial as figures: ratios are taken round by round, so that a drifting machine favours nobody."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from clients.bench.answers import decode_rate, whole_rate
from clients.bench.reference import Reference, Weights
from clients.bench.steps import Profile
from clients.bench.trial import Case, Layout, SwarmTrial
from clients.bench.turns import Results
from swarm.figures import Spread, new_table
from swarm.rates import Rates

__all__ = ["CaseReport", "SwarmReport", "case_floor", "prompt_floor", "thread_counts"]


def case_floor(case: Case, weights: Weights, rates: Mapping[int, Rates], trial: SwarmTrial, cores: int) -> float:
    """The most tokens per second. One session: one peer computes at a time, then the client. Several: all of them do
    at once, as far as there are cores, and each weight is read once for all sessions."""
    both, m = (case.layout.precision, trial.head_precision(case.layout)), case.sessions
    if m == 1:
        blocks, head = Weights(weights.blocks, 0), Weights(0, weights.head)
        peer, client = rates[trial.peer_threads], rates[trial.client_threads]
        seconds = peer.floor(blocks.size(*both), blocks.operations(1, 0, *both))
        return 1 / (seconds + client.floor(head.size(*both), head.operations(0, 1, *both)))
    all_threads = rates[_all_threads(trial, case.layout.peers, cores)]
    return m / all_threads.floor(weights.size(*both), weights.operations(m, m, *both))


def prompt_floor(layout: Layout, weights: Weights, rates: Mapping[int, Rates], trial: SwarmTrial, cores: int) -> float:
    """The least seconds of the long prompt, all peers at work at once."""
    both = (layout.precision, trial.head_precision(layout))
    peers = rates[_peer_threads(trial, layout.peers, cores)]
    return peers.floor(weights.size(*both), weights.operations(trial.long_prompt, 1, *both))


def thread_counts(trial: SwarmTrial, cores: int) -> set[int]:
    """With how many threads `case_floor` and `prompt_floor` want to know the machine."""
    together = {count(trial, peers, cores) for peers in trial.peers for count in (_peer_threads, _all_threads)}
    return {trial.threads, trial.peer_threads, trial.client_threads, *together}


def _peer_threads(trial: SwarmTrial, peers: int, cores: int) -> int:
    return min(cores, peers * trial.peer_threads)


def _all_threads(trial: SwarmTrial, peers: int, cores: int) -> int:
    return min(cores, peers * trial.peer_threads + trial.client_threads)


@dataclass(frozen=True, slots=True)
class CaseReport:
    """Rates are tokens per second of all sessions together; `ratio` is to the reference's in the same round,
    `whole_ratio` with prompts included in the time of both. `faithful`: whether the tokens are the reference's, None
    where precision does not promise it."""

    case: Case
    ratio: Spread
    whole_ratio: Spread
    rate: Spread
    most: float
    first: Spread
    faithful: bool | None
    profile: Profile | None

    @classmethod
    def of(cls, case: Case, results: Results, most: float) -> "CaseReport":
        found = [(turn.local, turn.cases[case]) for turn in results.turns]
        steps = [step for _, measured in found for step in measured.steps]
        answers = [answer for _, measured in found for answer in measured.answers]
        return cls(
            case=case,
            ratio=Spread.of([decode_rate(m.answers) / decode_rate([local]) for local, m in found]),
            whole_ratio=Spread.of([whole_rate(m.answers) / whole_rate([local]) for local, m in found]),
            rate=Spread.of([decode_rate(m.answers) for _, m in found]),
            most=most,
            first=Spread.of([statistics.median(a.first for a in m.answers) for _, m in found]),
            faithful=results.faithful.get(case),
            profile=Profile.of(steps, answers) if steps else None,
        )


@dataclass(frozen=True, slots=True)
class SwarmReport:
    """All of a trial. `long`: seconds to the first token of the long prompt, the least they could be, and how many
    times faster that is than with the fewest peers of that precision. `repeated`: those of two prompts with the same
    beginning, and the second's over the first's."""

    local_rate: Spread
    local_first: Spread
    local_most: float
    cases: list[CaseReport]
    long: dict[str, dict[str, Any]]
    repeated: dict[str, dict[str, Any]]

    @classmethod
    def of(
        cls, trial: SwarmTrial, reference: Reference, results: Results, rates: Mapping[int, Rates], cores: int
    ) -> "SwarmReport":
        weights, turns = reference.weights, results.turns
        return cls(
            local_rate=Spread.of([decode_rate([turn.local]) for turn in turns]),
            local_first=Spread.of([turn.local.first for turn in turns]),
            local_most=1 / reference.token_floor(rates[trial.threads]),
            cases=[CaseReport.of(c, results, case_floor(c, weights, rates, trial, cores)) for c in trial.cases],
            long=_long(trial, reference, results, rates, cores) if trial.long_prompt else {},
            repeated=_repeated(trial, results) if trial.repeated_prompt else {},
        )

    def tables(self, trial: SwarmTrial) -> Iterator[Table]:
        yield self._rates(trial)
        yield self._profiles()
        if self.long:
            columns = ("seconds", "at least", "faster than fewest peers")
            yield _figures(f"first token after {trial.long_prompt} tokens", self.long, columns)
        if self.repeated:
            columns = ("first time, seconds", "second time, seconds", "second / first")
            yield _figures(f"the same {trial.repeated_prompt} tokens again", self.repeated, columns)

    def as_json(self) -> dict[str, Any]:
        cases = [{"name": str(report.case), **asdict(report)} for report in self.cases]
        return {
            "local": {"rate": asdict(self.local_rate), "first": asdict(self.local_first), "most": self.local_most},
            "cases": cases,
            "long_prompt": _plain(self.long),
            "repeated_prompt": _plain(self.repeated),
        }

    def _rates(self, trial: SwarmTrial) -> Table:
        title = f"{trial.prompt_tokens} tokens of prompt, {trial.new_tokens} new: medians (lowest to highest)"
        table = new_table(
            title, "", "over local", "with prompts", "tokens/s", "at most", "first token, s", "same tokens"
        )
        name = f"local, fp32, {trial.threads} threads"
        table.add_row(
            name, "1", "1", str(self.local_rate), f"{self.local_most:.1f}", f"{self.local_first.median:.2f}", ""
        )
        for one in self.cases:
            same = {None: "", True: "yes", False: "NO"}[one.faithful]
            figures = (str(one.ratio), str(one.whole_ratio), str(one.rate), f"{one.most:.1f}")
            table.add_row(str(one.case), *figures, f"{one.first.median:.2f}", same)
        return table

    def _profiles(self) -> Table:
        table = new_table("where a token's time goes, ms", "", "whole", "compute", "queue", "network", "client")
        for one in self.cases:
            if one.profile is not None:
                table.add_row(str(one.case), *(f"{value:.2f}" for value in asdict(one.profile).values()))
        return table


def _long(
    trial: SwarmTrial, reference: Reference, results: Results, rates: Mapping[int, Rates], cores: int
) -> dict[str, dict[str, Any]]:
    turns = [turn.long for turn in results.turns]
    least = reference.prompt_floor(rates[trial.threads], trial.long_prompt)
    rows: dict[str, dict[str, Any]] = {"local": {"seconds": Spread.of([turn[None] for turn in turns]), "least": least}}
    for layout in trial.layouts:
        base = Layout(min(trial.peers), layout.precision)
        rows[str(layout)] = {
            "seconds": Spread.of([turn[layout] for turn in turns]),
            "least": prompt_floor(layout, reference.weights, rates, trial, cores),
            "faster": Spread.of([turn[base] / turn[layout] for turn in turns]),
        }
    return rows


def _repeated(trial: SwarmTrial, results: Results) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for layout in trial.layouts:
        pairs = [turn.repeated[layout] for turn in results.turns]
        one, two = (Spread.of(list(seconds)) for seconds in zip(*pairs, strict=True))
        rows[str(layout)] = {"first": one, "second": two, "ratio": Spread.of([b / a for a, b in pairs])}
    return rows


def _figures(title: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> Table:
    table = new_table(title, "", *columns)
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values.values()))
    return table


def _plain(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: asdict(value) if isinstance(value, Spread) else value for key, value in values.items()}
        for name, values in rows.items()
    }
