"""`swarm demo`: four real peers on this machine, an answer through them, and a peer killed in the middle of it."""

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from clients.chat import encode_chat
from clients.model import SwarmModelForCausalLM
from clients.options import CacheDir
from clients.story import Story, show_chain
from swarm.catalogue import default_cache
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import SwarmError, UsageError
from swarm.subprocesses import ServeProcess
from swarm.terminal import quiet_libraries

__all__ = ["demo"]

NAMES = ("ada", "bela", "carl", "dora")
PROMPT = "Explain in a few sentences why the sky is blue."
START_SECONDS = 180.0


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
    with ExitStack() as stack:
        peers = _start_peers(stack, console, setting)
        same = _ask(console, peers, setting)
        if stay:
            _stay(console, peers, model)
    if not same:
        raise SwarmError("the answer differs from the one of the same model in one process: this is a bug, please tell us")


# --- the swarm ---------------------------------------------------------------------------------------------------


def _start_peers(stack: ExitStack, console: Console, setting: _Setting) -> list[ServeProcess]:
    model, started = setting.checkpoint, time.monotonic()
    half = (model.num_blocks + 1) // 2
    console.print(
        f"[bold]A swarm for {model.name}[/]: {model.num_blocks} blocks; {len(NAMES)} peers, each with room for {half}"
    )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarm-demo-")))

    def start(name: str, *swarm: str) -> ServeProcess:
        arguments = [str(model.folder), *swarm, "--num-blocks", str(half), "--threads", "1", "--public-name", name]
        arguments += ["--identity-path", str(folder / f"{name}.key"), "--cache-dir", str(setting.cache)]
        return stack.enter_context(ServeProcess(arguments, name=name))

    peers = [start(NAMES[0], "--new-swarm")]
    address = peers[0].wait_ready(START_SECONDS).addresses[0]
    peers += [start(name, "--initial-peers", address) for name in NAMES[1:]]
    for peer in peers:
        ready = peer.wait_ready(START_SECONDS)
        console.print(f"  [green]●[/] {peer.name:<5} {ready.peer_id[-8:]}  blocks {ready.blocks!s:<6} [dim]{ready.reason}[/]")
    console.print(f"[dim]  up in {time.monotonic() - started:.0f} s[/]\n")
    return peers


def _stay(console: Console, peers: Sequence[ServeProcess], model: str) -> None:
    alive = [peer for peer in peers if peer.alive]
    address = alive[0].ready.addresses[0]
    console.print("\n[bold]The swarm stays up.[/] On another terminal:")
    for line in (
        alive[0].ready.join,
        f'swarm run {model} "Hi there" --initial-peers {address}',
        f"swarm status --initial-peers {address}",
    ):
        console.print(f"  {line}", markup=False)
    console.print("Ctrl-C stops everything.")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


# --- the answer --------------------------------------------------------------------------------------------------


def _ask(console: Console, peers: Sequence[ServeProcess], setting: _Setting) -> bool:
    """Tell the story and its summary; returns whether the answer is the one of a single process."""
    by_id = {peer.ready.peer_id: peer for peer in peers}
    tokenizer = AutoTokenizer.from_pretrained(setting.checkpoint.folder)
    input_ids = encode_chat(tokenizer, [("user", setting.prompt)])
    killed: list[float] = []

    def kill_one(tokens: int) -> None:
        if tokens == setting.kill_after:
            victim = by_id[story.chains[-1][-1].peer]
            story.say(f"[bold red]SIGKILL to {victim.name}[/]", "the last hop of the chain")
            victim.kill()
            killed.append(time.monotonic())

    names = {peer_id: peer.name for peer_id, peer in by_id.items()}
    story = Story(tokenizer, console, console, names=names, after_token=kill_one)
    console.print(f"[bold]> {setting.prompt}[/]")
    started = time.monotonic()
    with SwarmModelForCausalLM.from_pretrained(
        str(setting.checkpoint.folder),
        initial_peers=[peer.ready.addresses[0] for peer in peers],
        cache=setting.cache,
        observer=story.hear,
    ) as model:
        output = model.generate(input_ids, max_new_tokens=setting.max_new_tokens, do_sample=False, streamer=story)
    answer = output[0, input_ids.shape[1] :].tolist()
    same = answer == _local_answer(setting, input_ids)
    gap = next((at - killed[0] for at in story.times if killed and at > killed[0]), None)
    _sum_up(console, story, names, gap, same, started)
    return same


def _local_answer(setting: _Setting, input_ids: Tensor) -> list[int]:
    """The same weights in this process, for comparison."""
    local = AutoModelForCausalLM.from_pretrained(setting.checkpoint.folder, dtype=torch.float32)
    output = local.generate(input_ids, max_new_tokens=setting.max_new_tokens, do_sample=False)
    tokens: list[int] = output[0, input_ids.shape[1] :].tolist()
    return tokens


def _sum_up(console: Console, story: Story, names: dict, gap: float | None, same: bool, started: float) -> None:
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
