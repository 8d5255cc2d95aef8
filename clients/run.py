"""`swarm run`: one prompt, one answer, streamed."""

import json
import os
import sys
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import AutoTokenizer

from clients.chat import encode_chat, encode_text
from clients.model import SwarmModelForCausalLM
from clients.options import CacheDir, InitialPeers, ModelName, Patience, split_peers
from clients.story import Story
from swarm.catalogue import default_cache
from swarm.terminal import quiet_libraries

__all__ = ["run"]


def run(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    initial_peers: InitialPeers = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample among the likeliest tokens of this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="Instructions that come before the prompt.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without a chat template.")
    ] = False,
    codec: Annotated[str, typer.Option(help="How hidden states travel: fp32, fp16, bf16, or int8.")] = "fp32",
    patience: Patience = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end instead of a stream.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Generate an answer to a prompt with the peers of a swarm."""
    peers = split_peers(initial_peers)
    quiet_libraries(os.environ)
    text = sys.stdin.read() if prompt == "-" else prompt
    if seed is not None:
        torch.manual_seed(seed)
    answers = Console(highlight=False, soft_wrap=True, quiet=as_json)
    notes = Console(stderr=True, highlight=False, soft_wrap=True, quiet=as_json or not sys.stderr.isatty())
    story: list[Story] = []
    with SwarmModelForCausalLM.from_pretrained(
        model,
        initial_peers=peers,
        cache=cache_dir or default_cache(os.environ),
        codec=codec,
        patience=patience,
        observer=lambda event: story[0].hear(event),
    ) as swarm_model:
        tokenizer = AutoTokenizer.from_pretrained(swarm_model.name_or_path)
        story.append(Story(tokenizer, answers, notes))
        turns = [("system", system)] if system else []
        ids = encode_text(tokenizer, text) if raw else encode_chat(tokenizer, [*turns, ("user", text)])
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
        )
        output = swarm_model.generate(ids, max_new_tokens=max_new_tokens, streamer=story[0], **sampling)
    if as_json:
        _print_json(tokenizer, output[0, ids.shape[1] :].tolist(), story[0])


def _print_json(tokenizer: object, tokens: list[int], story: Story) -> None:
    chain = [{"peer": hop.peer, "blocks": [hop.span.start, hop.span.end]} for hop in story.chains[-1]]
    answer = tokenizer.decode(tokens, skip_special_tokens=True)  # type: ignore[attr-defined]
    sys.stdout.write(json.dumps({"text": answer, "tokens": tokens, "chain": chain}) + "\n")
