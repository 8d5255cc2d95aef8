"""One prompt and its answer through a swarm, told to a terminal or as one JSON object."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer

from clients.chat import Tokenizer, encode_chat, encode_text
from clients.events import Event
from clients.model import SwarmModelForCausalLM
from clients.story import Story

__all__ = ["Question", "answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, and how the answer is chosen. `temperature` 0: always the likeliest token."""

    model: str
    text: str
    system: str | None = None
    raw: bool = False
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def encode(self, tokenizer: Tokenizer) -> Tensor:
        """Token ids [1, n]."""
        if self.raw:
            return encode_text(tokenizer, self.text)
        turns = [("system", self.system)] if self.system else []
        return encode_chat(tokenizer, [*turns, ("user", self.text)])

    @property
    def options(self) -> dict[str, Any]:
        """For `generate`."""
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {"max_new_tokens": self.max_new_tokens} | (sampling if self.temperature else {"do_sample": False})


def answer(
    question: Question,
    *,
    initial_peers: Sequence[str],
    cache: Path,
    codec: str | None,
    patience: float,
    as_json: bool,
) -> None:
    """The answer on stdout: as it comes, or with `as_json` one object at the end. Raises SwarmError."""
    if question.seed is not None:
        torch.manual_seed(question.seed)
    answers = Console(highlight=False, soft_wrap=True, quiet=as_json)
    notes = Console(stderr=True, highlight=False, soft_wrap=True, quiet=as_json or not sys.stderr.isatty())
    story: list[Story] = []

    def hear(event: Event) -> None:
        story[0].hear(event)

    with SwarmModelForCausalLM.from_pretrained(
        question.model, initial_peers=initial_peers, cache=cache, codec=codec, patience=patience, observer=hear
    ) as model:
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
        story.append(Story(tokenizer, answers, notes))
        prompt = question.encode(tokenizer)
        with story[0].closing():
            output = model.generate(prompt, streamer=story[0], **question.options)
    if as_json:
        _print_json(tokenizer, output[0, prompt.shape[1] :].tolist(), story[0])


def _print_json(tokenizer: Tokenizer, tokens: list[int], story: Story) -> None:
    chain = [{"peer": hop.peer, "blocks": [hop.span.start, hop.span.end]} for hop in story.chains[-1]]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    sys.stdout.write(json.dumps({"text": text, "tokens": tokens, "chain": chain}) + "\n")
