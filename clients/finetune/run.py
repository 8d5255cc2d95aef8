"""The run itself: steps, evaluations, checkpoints, and an end."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from clients.finetune import checkpoint
from clients.finetune.checkpoint import Progress
from clients.finetune.data import Row, collate
from clients.finetune.settings import Settings
from swarm.errors import Busy, MissingBlocks, NetworkError, SwarmError

__all__ = ["Step", "Tuning"]

MAY_CHANGE = {"learning_rate"}  # of what else makes a run: one that diverged goes on with a lower one
WARM_UP = 0.05  # the share of steps in which the learning rate rises


@dataclass(frozen=True, slots=True)
class Step:
    """What is told after each step. `evaluation`: the loss on held-out rows, where it was measured."""

    step: int
    loss: float
    tokens: int
    seconds: float
    evaluation: float | None


class Tuning:
    """`tuned`: PEFT's model, around one with the weights `base`. Rows of a step follow from the seed and the step's
    number alone."""

    def __init__(self, settings: Settings, tuned: Any, rows: Sequence[Row], base: str = "") -> None:
        held = int(len(rows) * settings.held_out)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        self.held_out = [rows[index] for index in order[:held]]
        self._rows = [rows[index] for index in order[held:]]
        self._settings = settings
        self._tuned = tuned
        learning = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(learning, lr=settings.learning_rate, weight_decay=0.0)
        self._learning = learning
        torch.manual_seed(settings.seed)
        same = {key: value for key, value in settings.identity().items() if key not in MAY_CHANGE}
        self._identity = {**same, "base_model": base, "rows": _digest(rows)}
        self.progress: Progress = checkpoint.load(settings.output, self._identity, tuned, self._optimizer)
        self.saved = self.progress.step  # what a new process would go on after

    def run(self, tell: Callable[[Step], None]) -> None:
        """To the last step, or to where it gets no better. An interrupt loses the steps since the last checkpoint at
        most, a swarm that fails none. Raises SwarmError."""
        settings, progress = self._settings, self.progress
        if self.held_out and not progress.evaluations:
            progress.evaluations.append((progress.step, self.evaluate()))  # what training has to better
        self._tuned.train()
        while progress.step < settings.steps and not self._gets_no_better():
            began = monotonic()
            loss, tokens = self._advance_or_save()
            seconds, last = monotonic() - began, progress.step == settings.steps
            evaluation = None
            if self.held_out and (last or progress.step % settings.evaluate_every == 0):
                evaluation = self.evaluate()
                progress.evaluations.append((progress.step, evaluation))
            if last or progress.step % settings.save_every == 0:
                self.save()
            tell(Step(progress.step, loss, tokens, seconds, evaluation))

    def advance(self) -> tuple[float, int]:
        """One step; its loss, and how many tokens it was of. Raises SwarmError."""
        batch = collate(self._batch(self.progress.step))
        loss = self._step(batch)
        self.progress.step += 1
        self.progress.losses.append(loss)
        return loss, int(batch["attention_mask"].sum())

    def save(self) -> None:
        checkpoint.save(self._settings.output, self._identity, self.progress, self._tuned, self._optimizer)
        self.saved = self.progress.step

    def _advance_or_save(self) -> tuple[float, int]:
        random = torch.get_rng_state()
        try:
            return self.advance()
        except (NetworkError, MissingBlocks, Busy):  # on the way there or back: nothing here has changed
            torch.set_rng_state(random)
            self.save()
            raise

    @torch.no_grad()
    def evaluate(self) -> float:
        """The loss of a token of the held-out rows."""
        self._tuned.eval()
        total = counted = 0.0
        size = self._settings.batch
        for at in range(0, len(self.held_out), size):
            rows = self.held_out[at : at + size]
            counts = sum(sum(row.counts[1:]) for row in rows)
            total += self._tuned(**collate(rows)).loss.item() * counts
            counted += counts
        self._tuned.train()
        return total / counted

    def _step(self, batch: dict[str, Tensor]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * self._rate(self.progress.step)
        loss = self._tuned(**batch).loss
        value = float(loss.item())
        self._check(math.isfinite(value), f"its loss is {value}")
        self._optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self._learning, 1.0))
        self._check(math.isfinite(norm), "its gradient is not finite")
        self._optimizer.step()
        self._check(all(bool(p.isfinite().all()) for p in self._learning), "the adapter is not finite any more")
        return value

    def _check(self, good: bool, what: str) -> None:
        if not good:
            raise SwarmError(f"the run has diverged at step {self.progress.step + 1}, {what}: lower --learning-rate")

    def _rate(self, step: int) -> float:
        """Of the full learning rate: up, then down to nothing."""
        steps = self._settings.steps
        rising = max(1, round(WARM_UP * steps))
        return (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising)

    def _batch(self, step: int) -> list[Row]:
        """The rows of a step: all rows in a new order, again and again."""
        size, count = self._settings.batch, len(self._rows)
        chosen = []
        for at in range(step * size, (step + 1) * size):
            seed = self._settings.seed + 1 + at // count
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            chosen.append(self._rows[int(order[at % count])])
        return chosen

    def _gets_no_better(self) -> bool:
        patience, losses = self._settings.stop_after, [loss for _, loss in self.progress.evaluations]
        return bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _digest(rows: Sequence[Row]) -> str:
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()
