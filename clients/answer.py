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
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from clients.chat import Tokenizer, encode_chat, encode_text
from clients.events import Event
from clients.model import SwarmModelForCausalLM
from clients.own_adapter import Choice
from clients.speculation import Drafts
from clients.story import Story
from swarm.checkpoint import resolve
from swarm.errors import UsageError

__all__ = ["Question", "answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, and how the answer is chosen. `temperature` 0: always the likeliest token. `draft`: "none",
    "ngram" or the name of a model. `adapter`: a folder, a hub id, or the name of one that
    peers host."""

    model: str
    text: str
    system: str | None = None
    raw: bool = False
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    draft: str = "none"
    adapter: str | None = None

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
    adapter = Choice(question.adapter, question.model, cache=cache)
    answers = Console(highlight=False, soft_wrap=True, quiet=as_json)
    notes = Console(stderr=True, highlight=False, soft_wrap=True, quiet=as_json or not sys.stderr.isatty())
    story: list[Story] = []

    def hear(event: Event) -> None:
        story[0].hear(event)

    with SwarmModelForCausalLM.from_pretrained(
        question.model, initial_peers=initial_peers, cache=cache, codec=codec, patience=patience, observer=hear
    ) as model:
        adapter.load(model)
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
        story.append(Story(tokenizer, answers, notes))
        prompt, draft = question.encode(tokenizer), _drafts(question.draft, tokenizer, cache)
        with story[0].closing(), model.new_cache(adapters=adapter.blocks) as past:
            mask = torch.ones_like(prompt)  # or the library takes tokens like that of padding for it
            output = model.generate(
                prompt, attention_mask=mask, streamer=story[0], draft=draft, past_key_values=past, **question.options
            )
        drafted = past.speculation
    if drafted is not None:
        story[0].say("drafts", str(drafted.tally))
    if as_json:
        _print_json(tokenizer, output[0, prompt.shape[1] :].tolist(), story[0])


def _drafts(name: str, tokenizer: Tokenizer, cache: Path) -> Drafts | None:
    """Who drafts, for what `--draft` says. Raises UsageError, ModelError."""
    if name in ("none", "ngram"):
        return None if name == "none" else name
    checkpoint = resolve(name, cache=cache)
    if AutoTokenizer.from_pretrained(checkpoint.folder).get_vocab() != tokenizer.get_vocab():
        raise UsageError(f"--draft {name}: it has another tokenizer than the model, so it can't guess its tokens")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    return model


def _print_json(tokenizer: Tokenizer, tokens: list[int], story: Story) -> None:
    chain = [{"peer": hop.peer, "blocks": [hop.span.start, hop.span.end]} for hop in story.chains[-1]]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    sys.stdout.write(json.dumps({"text": text, "tokens": tokens, "chain": chain}) + "\n")
