"""The demo itself: what it starts, asks, kills, and says of it."""

import time
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from clients.chat import encode_chat
from clients.local_swarm import GatewayProcess, LocalSwarm
from clients.model import SwarmModelForCausalLM
from clients.story import Story, show_chain
from swarm.checkpoint import Checkpoint, resolve
from swarm.ids import PeerId
from swarm.terminal import plain
from swarm.weights import quiet_library

__all__ = ["Plot", "show"]

NAMES = ("ada", "bela", "carl", "dora")


@dataclass(frozen=True, slots=True)
class Plot:
    """What the demo shows. `stay`: whether the swarm is left up afterwards, with a gateway; `open_page`: whether a
    browser is shown its page."""

    model: str
    cache: Path
    prompt: str
    max_new_tokens: int
    kill_after: int
    stay: bool
    open_page: bool = False


def show(plot: Plot) -> bool:
    """Whether the answer was that of the same model in one process."""
    console = Console(highlight=False, soft_wrap=True)
    checkpoint = resolve(plot.model, cache=plot.cache)
    with LocalSwarm(plot.model, plot.cache) as swarm:
        _start(console, swarm, checkpoint)
        same = _ask(console, swarm, checkpoint, plot)
        if plot.stay:
            _stay(console, swarm, plot)
    return same


# --- the swarm ---------------------------------------------------------------------------------------------------


def _start(console: Console, swarm: LocalSwarm, model: Checkpoint) -> None:
    started = time.monotonic()
    half = (model.num_blocks + 1) // 2
    sizes = f"{model.num_blocks} blocks; {len(NAMES)} peers, each with room for {half}"
    console.print(f"[bold]A swarm for {escape(model.name)}[/]: {sizes}")
    swarm.start_all(NAMES, "--num-blocks", str(half))
    for peer in swarm.peers:
        ready = peer.ready
        where = f"{peer.name:<5} {ready.peer_id[-8:]}  blocks {ready.blocks!s:<6}"
        console.print(f"  [green]●[/] {where} [dim]{escape(plain(ready.reason))}[/]")
    console.print(f"[dim]  up in {time.monotonic() - started:.0f} s[/]\n")


def _stay(console: Console, swarm: LocalSwarm, plot: Plot) -> None:
    """Until Ctrl-C. Raises SwarmError when the gateway ends by itself."""
    console.print("\n[dim]starting a gateway …[/]")
    with GatewayProcess(plot.model, swarm.addresses, plot.cache) as gateway:
        url = gateway.wait_ready()
        console.print("\n[bold]The swarm stays up,[/] and a gateway serves it:")
        alive = next(peer for peer in swarm.peers if peer.alive)
        for label, line in (
            ("chat page", f"{url}/"),
            ("the swarm", f"{url}/swarm"),
            ("API", f"{url}/v1"),
        ):
            console.print(f"  {label:<10}{line}", markup=False)
        console.print("\nOn another terminal:")
        for line in (
            f"swarm chat --url {url}/v1",
            f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=none",
            f"swarm status --initial-peers {swarm.address}",
            alive.ready.join,
        ):
            console.print(f"  {line}", markup=False)
        console.print("\nCtrl-C stops everything.")
        if plot.open_page:
            webbrowser.open(f"{url}/")
        gateway.wait_end()


# --- the answer --------------------------------------------------------------------------------------------------


def _ask(console: Console, swarm: LocalSwarm, checkpoint: Checkpoint, plot: Plot) -> bool:
    """Tell the story and its summary; returns whether the answer is the one of a single process."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    input_ids = encode_chat(tokenizer, [("user", plot.prompt)])
    killed: list[float] = []

    def kill_one(tokens: int) -> None:
        if tokens == plot.kill_after:
            victim = swarm.named(story.chains[-1][-1].peer)
            story.say(f"[bold red]SIGKILL to {victim.name}[/]", "the last hop of the chain")
            victim.kill()
            killed.append(time.monotonic())

    names = {peer.ready.peer_id: peer.name for peer in swarm.peers}
    story = Story(tokenizer, console, console, names=names, after_token=kill_one)
    console.print(f"> {plain(plot.prompt)}", style="bold", markup=False)
    started = time.monotonic()
    with (
        SwarmModelForCausalLM.from_pretrained(
            str(checkpoint.folder),
            initial_peers=swarm.addresses,
            cache=plot.cache,
            observer=story.hear,
        ) as model,
        story.closing(),
    ):
        options: dict[str, Any] = {"max_new_tokens": plot.max_new_tokens, "do_sample": False}
        mask = torch.ones_like(input_ids)  # or the library takes tokens like that of padding for it
        output = model.generate(input_ids, attention_mask=mask, streamer=story, **options)
    answer: list[int] = output[0, input_ids.shape[1] :].tolist()
    same = answer == _local_answer(checkpoint, input_ids, plot.max_new_tokens)
    gap = next((at - killed[0] for at in story.times if killed and at > killed[0]), None)
    _sum_up(console, story, names, gap=gap, same=same, started=started)
    return same


def _local_answer(checkpoint: Checkpoint, input_ids: Tensor, max_new_tokens: int) -> list[int]:
    """The same weights in this process, for comparison."""
    with quiet_library():
        local: Any = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    mask = torch.ones_like(input_ids)
    output = local.generate(input_ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False)
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
