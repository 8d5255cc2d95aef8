"""Sixty-four sessions at once on two real peers of the real model, for ten minutes: nothing of them stays.

Prompts and answers are long and short, some prompts begin alike, and who has an answer asks for the next one at once.
SWARM_SOAK_MINUTES=30 makes it half an hour; in less than eight minutes memory does not settle.
"""

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from clients.local_swarm import LocalSwarm
from clients.model import SwarmModelForCausalLM
from swarm.errors import SwarmError
from swarm.subprocesses import ServeProcess
from tests.real.herd import daemon, executor
from tests.real.prompts import Text, options
from tests.soak.plans import SEED

MINUTES = float(os.environ.get("SWARM_SOAK_MINUTES") or 10)
SESSIONS = 64
AT_ONCE = 60  # that a peer has in most moments: of the others one has just ended, and the next is not yet there
HELD = ("sessions", "training_sessions", "rows", "queue_tokens", "kv_tokens_used")
PROMPT, ANSWER = (8, 700), (4, 200)  # tokens, the fewest and the most
BEGINNINGS = 3  # places of the text at which half of the prompts begin
KV_TOKENS = 24_576  # of each peer: room for all of them, and so few that soon every page has been used
ALLOWED = 16 << 20  # bytes of a process: what its allocator may keep in pieces
LOOK_SECONDS = 5.0  # between two looks at memory
START_SECONDS, PATIENCE = 240.0, 300.0
FREE_SECONDS = 120.0  # peers say what they hold every 30, and hang up on each other after 60

pytestmark = [pytest.mark.soak, pytest.mark.timeout(60 * MINUTES + 1500)]

Sizes = Mapping[str, int]  # of each process


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of prompt and answer. `error`: why it is not the answer that was asked for."""

    asked: int
    came: int
    error: str | None = None


@pytest.fixture(scope="module")
def swarm(cache: Path) -> Iterator[LocalSwarm]:
    """Two peers with half of the blocks each, in four bits."""
    common = ("--host", "127.0.0.1", "--port", "0", "--kv-cache-tokens", str(KV_TOKENS))
    bits = ("--dtype", "auto", "--quantization", "int4")
    with LocalSwarm("smollm2", cache) as swarm:
        for name, blocks in (("first", "0:15"), ("second", "15:30")):
            swarm.start(name, "--blocks", blocks, *common, *bits).wait_ready(START_SECONDS)
        yield swarm


def test_sessions_leave_nothing_behind(swarm: LocalSwarm, cache: Path, text: Text, figures: list[str]) -> None:
    """Memory is what is private to a process: the median of the last third of the time against that of the second. In
    the first, torch meets batches of every size, and every page of the KV cache is used: from then on it counts whether
    a session has it or not, so that it matters little who is there at the moment of a look. Of the client, whose every
    session is a thread, and whose heap is in as many pieces, it is only told."""
    peers = {f"{peer.name} {part}": process for peer in swarm.peers for part, process in parts(peer)}
    before, looks, at_once = files(peers), list[Sizes](), list[int]()
    with SwarmModelForCausalLM.from_pretrained(
        "smollm2", initial_peers=swarm.addresses, cache=cache, patience=PATIENCE
    ) as model:
        everyone, begun = {**peers, "client": psutil.Process()}, time.monotonic()

        def look() -> None:
            looks.append(memory(everyone))
            at_once.extend(lines[-1]["sessions"] for lines in map(stats, swarm.peers) if lines)

        answers = play(model, text, look)
        seconds = time.monotonic() - begun
        left = wait(holds(swarm))  # before the client leaves, with whom everything of it would go
    opened = wait(lambda: {name: max(0, count - before[name]) for name, count in files(peers).items()})
    third = len(looks) // 3
    second, last = medians(looks[third:-third]), medians(looks[-third:])
    growth = {name: last[name] - second[name] for name in last}
    asked, came = sum(answer.asked for answer in answers), sum(answer.came for answer in answers)
    figures.append(
        f"{len(answers)} sessions in {seconds:.0f} s, {statistics.median(at_once):.0f} at once: {asked / seconds:.0f} "
        f"tokens/s of prompts and {came / seconds:.0f} of answers; left: {left}, files: {sum(opened.values())}"
    )
    figures += [
        f"private memory, {name}: {looks[0][name] / 1e6:.0f} MB at first, {second[name] / 1e6:.1f} in the second third "
        f"and {more / 1e6:+.1f} in the last"
        for name, more in growth.items()
    ]
    assert [answer.error for answer in answers if answer.error] == []
    assert statistics.median(at_once) >= AT_ONCE
    assert not any(left.values())
    assert not any(opened.values())
    assert max(growth[name] for name in peers) < ALLOWED


def play(model: SwarmModelForCausalLM, text: Text, look: Callable[[], None]) -> list[Answer]:
    """What came of all sessions; the last ones begin when the time is over, until which `look` is called."""
    dice, until = random.Random(SEED), time.monotonic() + 60 * MINUTES

    def user(dice: random.Random) -> list[Answer]:
        answers = []
        while time.monotonic() < until:
            answers.append(ask(model, text, dice))
        return answers

    with ThreadPoolExecutor(SESSIONS) as pool:
        users = [pool.submit(user, random.Random(dice.random())) for _ in range(SESSIONS)]
        while time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            look()
    return [answer for user in users for answer in user.result()]


def ask(model: SwarmModelForCausalLM, text: Text, dice: random.Random) -> Answer:
    start = dice.randrange(BEGINNINGS if dice.random() < 0.5 else len(text.ids))
    asked, wanted = length(dice, *PROMPT), length(dice, *ANSWER)
    try:
        output = model.generate(text.prompt(asked, start)["input_ids"], **options("greedy", wanted))
    except SwarmError as error:
        return Answer(asked, 0, f"{type(error).__name__}: {error}")
    came = int(output.shape[1]) - asked
    return Answer(asked, came, None if came == wanted else f"{came} tokens instead of {wanted}")


def length(dice: random.Random, least: int, most: int) -> int:
    """As many of 10 to 20 as of 100 to 200."""
    return round(least * math.pow(most / least, dice.random()))


def parts(peer: ServeProcess) -> Iterator[tuple[str, psutil.Process]]:
    yield "network", psutil.Process(peer.pid)
    yield "daemon", daemon(peer)
    yield "device", executor(peer)


def memory(processes: Mapping[str, psutil.Process]) -> Sizes:
    return {name: process.memory_full_info().uss for name, process in processes.items()}


def files(processes: Mapping[str, psutil.Process]) -> Sizes:
    return {name: process.num_fds() for name, process in processes.items()}


def medians(looks: Sequence[Sizes]) -> Sizes:
    return {name: round(statistics.median(look[name] for look in looks)) for name in looks[0]}


def stats(peer: ServeProcess) -> list[dict[str, int]]:
    return [event for event in peer.events if event.get("event") == "stats"]


def holds(swarm: LocalSwarm) -> Callable[[], Sizes]:
    """Sessions, rows and tokens that each peer has, as it says from now on; until it has said so, not nothing."""
    known = {peer.name: len(stats(peer)) for peer in swarm.peers}

    def now() -> Sizes:
        lines = {peer.name: stats(peer) for peer in swarm.peers}
        return {name: sum(s[-1][what] for what in HELD) if len(s) > known[name] else 1 for name, s in lines.items()}

    return now


def wait(left: Callable[[], Sizes]) -> Sizes:
    """What is left: nothing, or what does not go away."""
    deadline = time.monotonic() + FREE_SECONDS
    while any((now := left()).values()) and time.monotonic() < deadline:
        time.sleep(1.0)
    return now
