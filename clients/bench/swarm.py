"""`swarm bench swarm`: swarms on this machine against the same model in one process."""

from dataclasses import asdict

from rich.console import Console

from clients.bench.report import SwarmReport, thread_counts
from clients.bench.trial import SwarmTrial
from clients.bench.turns import measure
from swarm.figures import publish
from swarm.rates import measure_rates, usable_cores

__all__ = ["run"]


def run(trial: SwarmTrial, notes: Console) -> None:
    """Measure and print. Raises SwarmError."""
    cores = usable_cores()
    counts = sorted(thread_counts(trial, cores))
    notes.print("measuring this machine …")
    before = [measure_rates(count) for count in counts]
    reference, results = measure(trial, notes)
    rates = {one.threads: one.at_best(measure_rates(one.threads)) for one in before}
    report = SwarmReport.of(trial, reference, results, rates, cores)
    settings = {**asdict(trial), "cache": str(trial.cache)}
    machine = [asdict(each) for each in rates.values()]
    publish(
        "swarm",
        list(report.tables(trial)),
        {"settings": settings, "rates": machine, "others": results.others, **report.as_json()},
        alone=notes.quiet,
    )
