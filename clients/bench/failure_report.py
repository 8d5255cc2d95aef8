"""Failures as figures: rates with them, beside what each failure should cost by the cost of one recovery.

A rate is one of whole answers only; what would take for ever is given by what is to be expected of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from math import expm1, log1p
from statistics import mean, median
from typing import Any

from rich.table import Table

from clients.bench.failing import Outcome, Remedy
from clients.bench.trial import FailuresTrial
from swarm.figures import Spread, new_table

__all__ = ["FailureReport", "Round", "kept_by_mending", "kept_by_restarts"]

Round = dict[tuple[float, Remedy], Outcome]

TITLES = {Remedy.OURS: "ours", Remedy.REPLAY: "replayed by the client", Remedy.RESTART: "begun anew"}


def kept_by_mending(probability: float, hops: int, step: float, recovery: float) -> float:
    """Of the rate without failures, when each hop fails before a step with `probability` and that costs `recovery`
    seconds on top of the `step`."""
    return step / (step + (1 - (1 - probability) ** hops) * recovery)


def kept_by_restarts(probability: float, hops: int, tokens: int) -> float:
    """The same where everything begins anew: `tokens` over the steps that are to be expected until so many come in a
    row. No failure is drawn after the last."""
    if not probability:
        return 1.0
    passes = hops * log1p(-probability)  # logarithm of the probability that a step passes
    wasted = -expm1(passes)
    expected = expm1(-passes * (tokens - 1)) / wasted + 1
    return tokens / expected


class FailureReport:
    """Of all rounds. Each must have the same cases, one without failures among them."""

    def __init__(self, trial: FailuresTrial, rounds: Sequence[Round]) -> None:
        self._trial = trial
        self._rounds = rounds
        self._calm = [each[0.0, Remedy.OURS] for each in rounds]
        self._step = median(outcome.step for outcome in self._calm)

    def tables(self) -> Iterator[Table]:
        title = (
            f"{self._trial.new_tokens} tokens, {self._trial.peers} hops with a spare each, steps/s: "
            "medians (lowest to highest)"
        )
        yield self._table(title, self._rate_cell)
        yield self._table(
            "over the rate without failures in the same round; share of time not lost in recoveries; predicted share",
            self._kept_cell,
        )

    def figures(self) -> dict[str, Any]:
        """For JSON. `same`: whether the tokens, as far as they came, are those of the answer without failures."""
        recoveries = {str(remedy): _spread(self._recoveries(remedy)) for remedy in (Remedy.OURS, Remedy.REPLAY)}
        return {
            "step": self._step,
            "recoveries": recoveries,
            "cases": [self._case(*case) for case in self._rounds[0]],
        }

    # --- inside ---

    def _case(self, probability: float, remedy: Remedy) -> dict[str, Any]:
        outcomes = [each[probability, remedy] for each in self._rounds]
        return {
            "probability": probability,
            "remedy": str(remedy),
            "rate": _spread(self._rates(probability, remedy)),
            "kept": _spread(self._kept(probability, remedy)),
            "predicted": self._predicted(probability, remedy),
            "failures": [outcome.failures for outcome in outcomes],
            "furthest": [len(outcome.tokens) for outcome in outcomes],
            "seconds": [outcome.seconds for outcome in outcomes],
            "lost": self._lost(probability, remedy),
            "same": all(self._same(outcome, calm) for outcome, calm in zip(outcomes, self._calm, strict=True)),
        }

    def _same(self, outcome: Outcome, calm: Outcome) -> bool:
        return outcome.tokens == calm.tokens[: len(outcome.tokens)]

    def _rates(self, probability: float, remedy: Remedy) -> list[float]:
        """Of the answers that ended."""
        rates = (each[probability, remedy].rate for each in self._rounds)
        return [rate for rate in rates if rate is not None]

    def _kept(self, probability: float, remedy: Remedy) -> list[float]:
        pairs = zip((each[probability, remedy].rate for each in self._rounds), self._calm, strict=True)
        return [rate / calm.rate for rate, calm in pairs if rate is not None and calm.rate is not None]

    def _recoveries(self, remedy: Remedy) -> list[float]:
        """Seconds, of all rounds and probabilities."""
        return [
            seconds
            for each in self._rounds
            for (_, kind), outcome in each.items()
            if kind is remedy
            for seconds in outcome.recoveries
        ]

    def _predicted(self, probability: float, remedy: Remedy) -> float | None:
        """None where nothing failed by which to predict."""
        if remedy is Remedy.RESTART:
            return kept_by_restarts(probability, self._trial.peers, self._trial.new_tokens)
        seconds = self._recoveries(remedy)
        if not seconds:
            return None
        return kept_by_mending(probability, self._trial.peers, self._step, mean(seconds))

    def _table(self, title: str, cell: Callable[[float, Remedy], str]) -> Table:
        table = new_table(title, "fails before a step, each hop", *TITLES.values())
        for probability in self._trial.probabilities:
            table.add_row(f"{probability:g}", *(cell(probability, remedy) for remedy in TITLES))
        return table

    def _rate_cell(self, probability: float, remedy: Remedy) -> str:
        if (probability, remedy) not in self._rounds[0]:
            return self._rate_cell(probability, Remedy.OURS)
        rates = self._rates(probability, remedy)
        if len(rates) == len(self._rounds):
            return str(Spread.of(rates))
        furthest = max(len(each[probability, remedy].tokens) for each in self._rounds)
        ended = f", {len(rates)} of {len(self._rounds)} ended" if rates else ""
        return f"- ({furthest} tokens in {self._trial.limit:g} times the time{ended})"

    def _kept_cell(self, probability: float, remedy: Remedy) -> str:
        """Beside the ratio, which drifts with the machine: what was not lost in recoveries, of each answer alone."""
        if (probability, remedy) not in self._rounds[0] or not probability:
            return "1"
        kept, predicted = self._kept(probability, remedy), self._predicted(probability, remedy)
        measured = str(Spread.of(kept)) if len(kept) == len(self._rounds) else "-"
        if remedy is Remedy.RESTART:
            return f"{measured}; {predicted:.2g}"
        own = 1 - median(self._lost(probability, remedy))
        return f"{measured}; {own:.3f}" + ("" if predicted is None else f"; {predicted:.3f}")

    def _lost(self, probability: float, remedy: Remedy) -> list[float]:
        """The share of each answer's time that went into recoveries."""
        outcomes = (each[probability, remedy] for each in self._rounds)
        return [sum(outcome.recoveries) / outcome.seconds for outcome in outcomes]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {**asdict(Spread.of(values)), "mean": mean(values), "count": len(values)} if values else None
