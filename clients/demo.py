"""`swarm demo`: four real peers on this machine, an answer through them, and a peer killed in the middle of it."""

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from clients.chat import encode_chat
from clients.local_swarm import LocalSwarm
from clients.model import SwarmModelForCausalLM
from clients.options import CacheDir
from clients.story import Story, show_chain
from swarm.catalogue import default_cache
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import SwarmError, UsageError
from swarm.ids import PeerId
from swarm.terminal import plain, quiet_libraries

__all__ = ["demo"]

NAMES = ("ada", "bela", "carl", "dora")
PROMPT = "Explain in a few sentences why the sky is blue."


@dataclass(frozen=True, slots=True)
class _Setting:
    """What the demo shows."""

    checkpoint: Checkpoint
    cache: Path
    prompt: str
    max_new_tokens: int
    kill_after: int


def demo(
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = PROMPT,
    model: Annotated[str, typer.Option(help="The model to serve and to ask.")] = "smollm2",
    max_new_tokens: Annotated[int, typer.Option(min=8, help="Length of the answer at most.")] = 96,
    kill_after: Annotated[int, typer.Option(min=1, help="Kill a peer after so many tokens.")] = 24,
    stay: Annotated[bool, typer.Option("--stay", help="Leave the swarm up afterwards, until Ctrl-C.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Start a small swarm on this machine, ask it something, and kill a peer in mid-answer.

    Each of the four peers hosts half of the blocks, chosen by placement; the answer is compared with the same model run
    in one process.
    """
    if kill_after >= max_new_tokens:
        raise UsageError("--kill-after must be smaller than --max-new-tokens, or nothing is killed in mid-answer")
    quiet_libraries(os.environ)
    console = Console(highlight=False, soft_wrap=True)
    cache = cache_dir or default_cache(os.environ)
    setting = _Setting(resolve(model, cache=cache), cache, prompt, max_new_tokens, kill_after)
    with LocalSwarm(setting.checkpoint, cache) as swarm:
        _start(console, swarm, setting.checkpoint)
        same = _ask(console, swarm, setting)
        if stay:
            _stay(console, swarm, model)
    if not same:
        raise SwarmError("the answer differs from that of the same model in one process: please report this")


# --- the swarm ---------------------------------------------------------------------------------------------------


def _start(console: Console, swarm: LocalSwarm, model: Checkpoint) -> None:
    started = time.monotonic()
    half = (model.num_blocks + 1) // 2
    console.print(
        f"[bold]A swarm for {model.name}[/]: {model.num_blocks} blocks; {len(NAMES)} peers, each with room for {half}"
    )
    swarm.start_all(NAMES, "--num-blocks", str(half))
    for peer in swarm.peers:
        ready = peer.ready
        where = f"{peer.name:<5} {ready.peer_id[-8:]}  blocks {ready.blocks!s:<6}"
        console.print(f"  [green]●[/] {where} [dim]{plain(ready.reason)}[/]")
    console.print(f"[dim]  up in {time.monotonic() - started:.0f} s[/]\n")


def _stay(console: Console, swarm: LocalSwarm, model: str) -> None:
    alive = next(peer for peer in swarm.peers if peer.alive)
    address = swarm.address
    console.print("\n[bold]The swarm stays up.[/] On another terminal:")
    for line in (
        alive.ready.join,
        f'swarm run {model} "Hi there" --initial-peers {address}',
        f"swarm status --initial-peers {address}",
    ):
        console.print(f"  {line}", markup=False)
    console.print("Ctrl-C stops everything.")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


# --- the answer --------------------------------------------------------------------------------------------------


def _ask(console: Console, swarm: LocalSwarm, setting: _Setting) -> bool:
    """Tell the story and its summary; returns whether the answer is the one of a single process."""
    tokenizer = AutoTokenizer.from_pretrained(setting.checkpoint.folder)
    input_ids = encode_chat(tokenizer, [("user", setting.prompt)])
    killed: list[float] = []

    def kill_one(tokens: int) -> None:
        if tokens == setting.kill_after:
            victim = swarm.named(story.chains[-1][-1].peer)
            story.say(f"[bold red]SIGKILL to {victim.name}[/]", "the last hop of the chain")
            victim.kill()
            killed.append(time.monotonic())

    names = {peer.ready.peer_id: peer.name for peer in swarm.peers}
    story = Story(tokenizer, console, console, names=names, after_token=kill_one)
    console.print(f"[bold]> {setting.prompt}[/]")
    started = time.monotonic()
    with SwarmModelForCausalLM.from_pretrained(
        str(setting.checkpoint.folder),
        initial_peers=swarm.addresses,
        cache=setting.cache,
        observer=story.hear,
    ) as model:
        output = model.generate(input_ids, max_new_tokens=setting.max_new_tokens, do_sample=False, streamer=story)
    answer: list[int] = output[0, input_ids.shape[1] :].tolist()
    same = answer == _local_answer(setting, input_ids)
    gap = next((at - killed[0] for at in story.times if killed and at > killed[0]), None)
    _sum_up(console, story, names, gap=gap, same=same, started=started)
    return same


def _local_answer(setting: _Setting, input_ids: Tensor) -> list[int]:
    """The same weights in this process, for comparison."""
    local: Any = AutoModelForCausalLM.from_pretrained(setting.checkpoint.folder, dtype=torch.float32)
    output = local.generate(input_ids, max_new_tokens=setting.max_new_tokens, do_sample=False)
    tokens: list[int] = output[0, input_ids.shape[1] :].tolist()
    return tokens


def _sum_up(
    console: Console, story: Story, names: Mapping[PeerId, str], *, gap: float | None, same: bool, started: float
) -> None:
    tokens = len(story.tokens)
    rate = (tokens - 1) / (story.times[-1] - story.times[0]) if tokens > 1 else 0.0
    verdict = "[green]identical[/] to the same model in one process" if same else "[red]DIFFERENT[/] from one process"
    rows = {
        "chain before": show_chain(story.chains[0], names),
        "chain after": show_chain(story.chains[-1], names),
        "gap": "no peer was killed: the answer was too short" if gap is None else f"{gap * 1000:.0f} ms",
        "tokens": f"{tokens}, {verdict}",
        "speed": f"{rate:.1f} tokens/s, the gap included; first token after {story.times[0] - started:.1f} s",
    }
    console.print()
    for label, value in rows.items():
        console.print(f"  [bold]{label:<13}[/] {value}")
