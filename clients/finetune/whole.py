"""A whole run, told as it happens: rows read, a swarm joined, an adapter trained and written."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer

from clients.chat import Tokenizer, encode_chat
from clients.finetune.adapter import with_adapter
from clients.finetune.data import rows_for
from clients.finetune.room import forecast
from clients.finetune.run import Tuning
from clients.finetune.settings import Settings
from clients.finetune.telling import Teller, draw, next_command, plot
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import resolve
from swarm.errors import SwarmError, UsageError
from swarm.terminal import plain

__all__ = ["fine_tune", "make_folder", "save_adapter"]

SAMPLE_TOKENS = 40


def fine_tune(
    settings: Settings,
    *,
    initial_peers: Sequence[str],
    cache: Path,
    codec: str | None,
    compress: str,
    patience: float,
    sample: str | None,
    as_json: bool,
) -> None:
    """Raises SwarmError."""
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    checkpoint = resolve(settings.model, cache=cache)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    rows = rows_for(settings, tokenizer, context=checkpoint.max_positions)
    make_folder(settings.output)
    console.print(f"{len(rows)} rows, {sum(len(row.tokens) for row in rows)} tokens from {settings.data}", markup=False)
    with SwarmModelForCausalLM.from_pretrained(
        settings.model,
        initial_peers=initial_peers,
        cache=cache,
        codec=codec,
        compress=compress,
        patience=patience,
        dtype=torch.float32,
    ) as model:
        before = None if sample is None else _answer(model, tokenizer, sample)
        tuned = with_adapter(model, settings)
        tuning = Tuning(settings, tuned, rows, checkpoint.digest)
        console.print(_told(tuned, tuning), markup=False)
        memory = forecast(model, tuned, settings, rows)
        console.print(str(memory), markup=False)
        with Teller(console, settings.steps, tuning.progress.step) as tell:
            _run(tuning, tell, console)
        save_adapter(settings, tuned, tokenizer)
        after = None if sample is None else _answer(tuned, tokenizer, sample)
        costs = model.training_costs()
    progress = tuning.progress
    drawn = plot(progress.losses, progress.evaluations, settings.output / "loss.png")
    console.print(f"loss {draw(progress.losses)} {progress.losses[-1]:.3f}")
    if progress.evaluations:
        (begun, first), (ended, last) = progress.evaluations[0], progress.evaluations[-1]
        console.print(f"loss of held-out rows: {first:.3f} after {begun} steps, {last:.3f} after {ended}")
    Teller.costs(console, costs)
    for name, text in (("before", before), ("after", after)):
        if text is not None:
            console.print(f"{name}: {plain(text)}", markup=False)
    console.print(f"the adapter is in {settings.output}" + (", its curve in loss.png" if drawn else ""), markup=False)
    console.print(next_command(settings, initial_peers), markup=False)
    if as_json:
        curves = {"losses": progress.losses, "evaluations": progress.evaluations}
        outcome = {"steps": progress.step, **curves, "before": before, "after": after, "output": str(settings.output)}
        outcome["memory"] = memory.whole
        sys.stdout.write(json.dumps(outcome) + "\n")


def _run(tuning: Tuning, tell: Teller, console: Console) -> None:
    """Where it ends too early, what is left of it is told."""
    try:
        tuning.run(tell)
    except (SwarmError, KeyboardInterrupt):
        if tuning.saved:
            console.print(f"step {tuning.saved} is kept: the same command goes on from there")
        raise


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder} can't be made: {error}") from error


def _told(tuned: Any, tuning: Tuning) -> str:
    numbers = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    begun = f"; goes on after step {tuning.progress.step}" if tuning.progress.step else ""
    return f"training {numbers} numbers; {len(tuning.held_out)} rows are held out to evaluate on{begun}"


def save_adapter(settings: Settings, tuned: Any, tokenizer: Tokenizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT looks for the base model's configuration on the hub
        tuned.save_pretrained(settings.output)
    tokenizer.save_pretrained(settings.output)


def _answer(model: Any, tokenizer: Tokenizer, prompt: str) -> str:
    model.eval()
    ids = encode_chat(tokenizer, [("user", prompt)])
    with torch.no_grad():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=SAMPLE_TOKENS, do_sample=False
        )
    text: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text
