"""Peers that live half a minute to two, on a wide-area network, under clients that never pause.

Eight peers choose half of the model each. Who must go is killed, told to leave, or loses its network; somebody new
takes its place at once. All of it runs on this machine, where whoever starts takes time from those who compute, as it
would not elsewhere. So throughput is compared with that of the same swarm left alone while as many peers of other
swarms start and go.
"""

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from transformers import PreTrainedModel

from clients.events import ChainChanged, Event, PeerLost, Waiting
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from swarm.ids import Span
from tests.real.herd import KV_TOKENS, family, wait_until_free
from tests.real.prompts import Text
from tests.soak.crowd import Answer, Crowd, Question
from tests.soak.plans import MINUTES, SEED
from tests.soak.village import Start, Village
from tests.wan.conftest import able
from tests.wan.wan import Link, Wan

__all__ = ["able"]

PEERS = CLIENTS = 8
WAY = Link(delay=0.025, jitter=0.005, loss=0.001)  # between any two hosts, one way
LENGTHS = (12, 40, 90, 150)  # of prompts
NEW = 48
PATIENCE = 60.0
LEAST = 0.6  # of the throughput without churn
WARM_SECONDS = 20.0
CALM_SECONDS, BUSTLE_SECONDS = 60.0 * min(2.0, MINUTES / 4), 60.0 * min(5.0, MINUTES / 2)
STRAY_SECONDS = 90.0
FOUND_SECONDS = 15.0  # after which a peer that serves blocks which nobody else does must be in use

pytestmark = [pytest.mark.soak, pytest.mark.timeout(60 * MINUTES + CALM_SECONDS + BUSTLE_SECONDS + 900)]

Log = Callable[[str], None]


@pytest.fixture(scope="module")
def questions(local: PreTrainedModel, text: Text) -> list[Question]:
    return [_question(local, text.piece(length, 31 * number)) for number, length in enumerate(LENGTHS)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """Lines with the time, in a file that a failed run leaves."""
    began = time.monotonic()
    with (tmp_path / "churn.log").open("w") as file:

        def write(line: str) -> None:
            print(f"{time.monotonic() - began:7.1f} {line}", file=file, flush=True)

        yield write


@dataclass(frozen=True, slots=True)
class Phase:
    """A time in which the clients generated, and who started in it."""

    name: str
    since: float
    until: float
    starts: tuple[Start, ...]

    @property
    def seconds(self) -> float:
        return self.until - self.since

    @property
    def share(self) -> float:
        """Of this machine, taken by those who started."""
        return sum(start.cpu for start in self.starts) / self.seconds / (os.cpu_count() or 1)


def test_peers_come_and_go_and_nobody_notices(
    able: None, checkpoint: Checkpoint, cache: Path, questions: list[Question], figures: list[str], log: Log
) -> None:
    draw, told = random.Random(SEED), Told(log)
    own = ("--cache-dir", str(cache), "--num-blocks", str(checkpoint.num_blocks // 2))
    room = ("--kv-cache-tokens", str(KV_TOKENS))
    with (
        Wan(WAY, seed=SEED) as wan,
        Village(wan, checkpoint.folder, *own, *room, homes=PEERS, draw=draw, log=log) as village,
    ):
        place = wan.host("clients")
        networks = {_network(host.namespace) for host in wan.hosts} - {None}
        village.settle()
        before = _belongings()
        with place.inside():
            model = SwarmModelForCausalLM.from_pretrained(
                checkpoint.folder,
                initial_peers=village.addresses,
                cache=cache,
                patience=PATIENCE,
                observer=told.hear,
            )
        with model:
            with Crowd(model, questions, clients=CLIENTS, draw=draw, log=log) as crowd:
                phases = list(_phases(village, log))
                village.wait_burials()
            wait_until_free(village.living, model)
            strays = _strays_left(village)
        left = _belongings() - before - {str(process.pid) for process in village.seen}
    rates = [crowd.rate(phase.since, phase.until) for phase in phases]
    whole, churn = Span(0, checkpoint.num_blocks), phases[-1]
    unexcused = [
        answer
        for answer in crowd.answers
        if answer.error and not village.ledger.gaps(whole, answer.since, answer.until)
    ]
    report = [
        *(_cost(phase, rate) for phase, rate in zip(phases, rates, strict=True)),
        f"the churn: {rates[2] / rates[1]:.2f} of the tokens/s of the bustle, {rates[2] / rates[0]:.2f} of the calm",
        _ends(village, village.ledger.gaps(whole, churn.since, churn.until)),
        _failures(crowd.answers, len(unexcused)),
        f"sessions said: {_listed(told.counts)}",
        _waits([answer for answer in crowd.answers if churn.since <= answer.until <= churn.until]),
        *(f"complaint: {complaint[:300]}" for complaint in village.complaints[:5]),
    ]
    figures += report
    for line in report:
        log(line)
    assert [answer for answer in crowd.answers if not answer.same] == []
    assert unexcused == []
    assert (strays, left) == ([], set())
    assert village.left_behind() == []
    assert [pid for pid in psutil.pids() if _network(Path(f"/proc/{pid}/ns/net")) in networks] == []
    assert rates[2] >= LEAST * rates[1]


def _phases(village: Village, log: Log) -> Iterator[Phase]:
    """What the village does while the clients generate."""
    doing: list[tuple[str, Callable[[], None]]] = [
        ("warm", lambda: time.sleep(WARM_SECONDS)),
        ("calm", lambda: time.sleep(CALM_SECONDS)),
        ("bustle", lambda: village.bustle(BUSTLE_SECONDS)),
        ("churn", lambda: village.churn(60 * MINUTES)),
    ]
    for name, do in doing:
        log(f"{name} begins")
        since, known = time.monotonic(), len(village.starts)
        do()
        if name != "warm":
            yield Phase(name, since, time.monotonic(), tuple(village.starts[known:]))


class Told:
    """What sessions said of themselves."""

    def __init__(self, log: Log) -> None:
        self.counts: Counter[str] = Counter()
        self._log = log

    def hear(self, event: Event) -> None:
        match event:
            case ChainChanged(hops=hops, lost=lost, left=left, seconds=seconds, reason=reason):
                what = "handed over" if left else "mended" if lost else "opened"
                chain = " ".join(f"{hop.span}@{hop.peer[-6:]}" for hop in hops)
                self._log(f"{what} in {seconds:.2f} s: {chain}; {reason}")
            case PeerLost(peer=peer, reason=reason):
                what = "lost a peer"
                self._log(f"lost {peer[-6:]}: {reason}")
            case Waiting(reason=reason, seconds=seconds):
                what = "waited"
                self._log(f"waits {seconds:.1f} s: {reason}")
            case _:
                return
        self.counts[what] += 1


def _question(local: PreTrainedModel, prompt: list[int]) -> Question:
    ids = torch.tensor([prompt])
    output = local.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW
    )
    return Question(tuple(prompt), tuple(output[0, len(prompt) :].tolist()))


def _cost(phase: Phase, rate: float) -> str:
    """What it gave, and what starting peers took of this machine."""
    started = "nobody started"
    if phase.starts:
        wall, cpu = (statistics.median(values) for values in zip(*((s.wall, s.cpu) for s in phase.starts), strict=True))
        each = f"{wall:.1f} s with {cpu:.1f} s of a core (medians)"
        started = f"{len(phase.starts)} peers started, each in {each}, {phase.share:.0%} of this machine"
    return f"{phase.name}: {rate:.1f} tokens/s in {phase.seconds:.0f} s; {started}"


def _ends(village: Village, gaps: list[tuple[float, float]]) -> str:
    alone = f"some block had nobody {len(gaps)} times, {sum(end - begin for begin, end in gaps):.0f} s in all"
    ended = f"{sum(village.endings.values())} peers ended ({_listed(village.endings)})"
    return f"{ended}; {alone}; {len(village.complaints)} complaints"


def _failures(answers: list[Answer], unexcused: int) -> str:
    failed = sum(answer.error is not None for answer in answers)
    return f"{len(answers)} answers, {failed} failed, {unexcused} of them although every block had a peer then"


def _waits(answers: list[Answer]) -> str:
    waits = sorted(answer.longest[1] - answer.longest[0] for answer in answers)
    if not waits:
        return "no answer ended in the churn"
    worst = ", ".join(f"{wait:.1f}" for wait in waits[-3:])
    return f"the longest wait for a token of an answer: median {statistics.median(waits):.2f} s, the worst {worst} s"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "nothing"


def _belongings() -> set[str]:
    """Sockets of this process, and the processes below it."""
    sockets = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            sockets.add(os.readlink(f"/proc/self/fd/{name}"))
    children = {str(child.pid) for child in psutil.Process().children(recursive=True)}
    return {one for one in sockets if one.startswith("socket:")} | children


def _strays_left(village: Village) -> list[str]:
    """Connections of who lives with hosts on which nobody serves, once there was time to notice."""
    deadline = time.monotonic() + STRAY_SECONDS
    while (strays := _strays(village)) and time.monotonic() < deadline:
        time.sleep(1.0)
    return strays


def _strays(village: Village) -> list[str]:
    return [
        f"{peer.name} with {connection.raddr.ip}"
        for peer in village.living
        for process in family(peer)
        for connection in process.net_connections("tcp")
        if connection.raddr and connection.raddr.ip in village.empty
    ]


def _network(namespace: Path) -> int | None:
    """The same for all who are in one."""
    try:
        return namespace.stat().st_ino
    except OSError:
        return None  # the process has ended
