"""`swarm bench local`: the model in one process, beside the least that reading its weights could take."""

from dataclasses import asdict

from rich.console import Console

from clients.bench.answers import Answer, decode_rate, new_prompt
from clients.bench.reference import Reference
from clients.bench.trial import LocalTrial
from swarm.bystanders import Bystanders
from swarm.checkpoint import resolve
from swarm.figures import Spread, new_table, publish
from swarm.rates import measure_rates

__all__ = ["run"]


def run(trial: LocalTrial, notes: Console) -> None:
    """Measure and print. Raises SwarmError."""
    reference = Reference.load(resolve(trial.model, cache=trial.cache), trial.precision, trial.threads)
    rates = measure_rates(trial.threads)
    answers: list[Answer] = []
    with Bystanders() as bystanders:
        for number in range(trial.rounds + 1):
            answers.append(_ask(reference, trial, number))
            notes.print(f"  {number or 'warm-up'}: {decode_rate(answers[-1:]):.1f} tokens/s")
    notes.print(str(bystanders))
    rates = rates.at_best(measure_rates(trial.threads))
    rate = Spread.of([decode_rate([answer]) for answer in answers[1:]])
    first = Spread.of([answer.first for answer in answers[1:]])
    most, least = 1 / reference.token_floor(rates), reference.prompt_floor(rates, trial.prompt_tokens)
    title = f"one process, {trial.precision}, {trial.threads} threads: medians (lowest to highest)"
    table = new_table(title, "", "measured", "at best")
    table.add_row(f"{trial.new_tokens} new tokens, tokens/s", str(rate), f"{most:.1f}")
    table.add_row(f"first token after {trial.prompt_tokens}, s", str(first), f"{least:.3f}")
    figures = {"rate": asdict(rate), "most": most, "first": asdict(first), "least_first": least}
    publish(
        "local",
        [table],
        {
            "settings": asdict(trial) | {"cache": str(trial.cache)},
            "rates": asdict(rates),
            "others": bystanders.cores,
            **figures,
        },
        alone=notes.quiet,
    )


def _ask(reference: Reference, trial: LocalTrial, number: int) -> Answer:
    vocabulary = reference.model.config.get_text_config().vocab_size
    return reference.ask(new_prompt(vocabulary, trial.prompt_tokens, number), trial.new_tokens)
