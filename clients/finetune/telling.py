"""What a run says: a bar on a terminal, plain lines elsewhere, and what came of it at the end."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clients.finetune.run import Step
from clients.finetune.settings import Settings
from clients.training.hop import Cost
from swarm.figures import new_table
from swarm.terminal import plain

__all__ = ["Teller", "draw", "next_command", "plot"]

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # characters of a curve
LINES = 20  # at most, where each step could have its own


class Teller:
    """A context manager; call it with each step."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        self._console = console
        self._steps = steps
        self._every = max(1, steps // LINES)
        self._evaluation: float | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=steps, completed=done)

    def __enter__(self) -> "Teller":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: Step) -> None:
        self._evaluation = step.evaluation if step.evaluation is not None else self._evaluation
        held = "" if self._evaluation is None else f", held-out {self._evaluation:.3f}"
        text = f"loss {step.loss:.3f}{held}, {step.tokens / step.seconds:.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step.step, description=text)
        elif step.evaluation is not None or step.step % self._every == 0:
            self._console.print(f"step {step.step} of {self._steps}: {text}")

    @staticmethod
    def costs(console: Console, costs: Sequence[Cost]) -> None:
        table = new_table("What peers computed, both ways", "peer", "blocks", "tokens", "seconds", "tokens/s")
        for cost in costs:
            if cost.seconds:
                rate = f"{cost.tokens / cost.seconds:.0f}"
                table.add_row(plain(cost.name, 24), str(cost.span), str(cost.tokens), f"{cost.seconds:.1f}", rate)
        console.print(table)


def draw(losses: Sequence[float]) -> str:
    """The curve in one line, from the first step to the last."""
    if not losses:
        return ""
    width = min(WIDTH, len(losses))
    groups = [losses[at * len(losses) // width : (at + 1) * len(losses) // width] for at in range(width)]
    means = [sum(group) / len(group) for group in groups]
    low, high = min(means), max(means)
    levels = [round((mean - low) / (high - low or 1) * (len(BARS) - 1)) for mean in means]
    return "".join(BARS[level] for level in levels)


def plot(losses: Sequence[float], evaluations: Sequence[tuple[int, float]], path: Path) -> bool:
    """The curve as a PNG; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # brings a second of import, and is not needed to train
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, label="each step", linewidth=1)
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), label="held-out rows", marker="o")
    axes.set(xlabel="step", ylabel="loss of a token")
    axes.legend()
    figure.savefig(path)
    return True


def next_command(settings: Settings, initial_peers: Sequence[str]) -> str:
    """How to use what came out: a command, or for virtual tokens, which commands don't take, a line of Python."""
    if settings.method not in ("lora", "ia3"):
        return f"use it in Python: PeftModel.from_pretrained(model, {str(settings.output)!r})"
    words = ["swarm", "chat", settings.model, "--adapter", str(settings.output)]
    return f"talk to it: {shlex.join([*words, '--initial-peers', ','.join(initial_peers)])}"
