"""What a swarm makes of its peers by itself: blocks that lost their only peer get another, a newcomer its share, and a
session another peer when its own has become slow.

Real peers that chose their blocks themselves.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from transformers import LogitsProcessorList, PreTrainedModel

from clients.events import ChainChanged, Event
from clients.local_swarm import LocalSwarm
from clients.model import SwarmModelForCausalLM
from swarm.subprocesses import ServeProcess
from tests.real.herd import executor, family
from tests.real.prompts import Text, answers, options
from tests.real.watching import AtToken, Watch
from tests.soak.crowd import Crowd, Question
from tests.soak.plans import SEED

HALF = ("--num-blocks", "15")
NEW, AT, CONTEXT = 48, 24, 60  # tokens
PATIENCE = 600.0
START = 240.0  # s for a peer to get ready
CLIENTS = 8
SETTLES, MEASURED = 60.0, 60.0  # s after a newcomer serves
LEAST_SHARE = 0.35  # of the work of two equal peers
LONG = 300  # tokens
RUNS, STOPS = 0.02, 0.18  # s in turn, of a peer that is to be slow

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_blocks_that_lost_their_only_peer_get_another(
    cache: Path, local: PreTrainedModel, text: Text, figures: list[str]
) -> None:
    prompt = text.prompt(CONTEXT, 0)
    with LocalSwarm("smollm2", cache) as swarm:
        for name in "abc":
            swarm.start(name, *HALF).wait_ready(START)
        spans = [peer.ready.blocks for peer in swarm.peers]
        (alone,) = (peer for peer, span in zip(swarm.peers, spans, strict=True) if spans.count(span) == 1)
        struck: list[float] = []

        def strike() -> None:
            struck.append(time.monotonic())
            alone.kill()

        seen = AtToken(AT, strike)
        ways_in = [peer.ready.addresses[0] for peer in swarm.peers if peer is not alone]
        with SwarmModelForCausalLM.from_pretrained(
            "smollm2", initial_peers=ways_in, cache=cache, patience=PATIENCE
        ) as model:
            ours = answers(model, prompt, logits_processor=LogitsProcessorList([seen]), **options("greedy", NEW))
    assert ours == answers(local, prompt, **options("greedy", NEW))
    gap = seen.gap_after(struck[0])
    assert gap is not None
    figures.append(f"the only peer of half of the model is killed: the next token after {gap:.0f} s, by one that moved")


def test_newcomer_gets_its_share_of_sessions(
    cache: Path, local: PreTrainedModel, text: Text, figures: list[str]
) -> None:
    questions = [question(local, text, number) for number in range(4)]
    with LocalSwarm("smollm2", cache) as swarm:
        old = swarm.start("old")
        old.wait_ready(START)
        with (
            SwarmModelForCausalLM.from_pretrained("smollm2", initial_peers=swarm.addresses, cache=cache) as model,
            Crowd(model, questions, clients=CLIENTS, draw=random.Random(SEED), log=figures.append) as crowd,
        ):
            new = swarm.start("new")
            new.wait_ready(START)
            time.sleep(SETTLES)
            before = worked(new), worked(old)
            time.sleep(MEASURED)
            ours, others = worked(new) - before[0], worked(old) - before[1]
    share = ours / (ours + others)
    figures.append(f"a newcomer beside a peer that serves {CLIENTS} clients: {share:.0%} of the work in its 2nd minute")
    assert not [answer for answer in crowd.answers if answer.error or not answer.same]
    assert share >= LEAST_SHARE


def question(local: PreTrainedModel, text: Text, number: int) -> Question:
    prompt = text.prompt(CONTEXT, number)
    (expected,) = answers(local, prompt, **options("greedy", NEW))
    return Question(tuple(prompt["input_ids"][0].tolist()), tuple(expected))


def worked(peer: ServeProcess) -> float:
    """Seconds of processor time that it has taken, with all its processes."""
    return sum(sum(one.cpu_times()[:2]) for one in family(peer))


def test_a_long_session_moves_off_a_peer_that_has_become_slow(
    cache: Path, local: PreTrainedModel, text: Text, figures: list[str]
) -> None:
    prompt, changed = text.prompt(CONTEXT, 0), list[float]()

    def note(event: Event) -> None:
        if isinstance(event, ChainChanged):
            changed.append(time.monotonic())

    watch = Watch(note)
    with LocalSwarm("smollm2", cache) as swarm, ExitStack() as stack:
        for name in "ab":
            swarm.start(name).wait_ready(START)
        own = {peer.ready.peer_id: peer for peer in swarm.peers}
        struck: list[float] = []

        def strike() -> None:
            struck.append(time.monotonic())
            (peer,) = watch.chain
            stack.enter_context(slow(own[peer]))

        seen = AtToken(AT, strike)
        with SwarmModelForCausalLM.from_pretrained(
            "smollm2", initial_peers=swarm.addresses, cache=cache, observer=watch.hear
        ) as model:
            ours = answers(model, prompt, logits_processor=LogitsProcessorList([seen]), **options("greedy", LONG))
    assert ours == answers(local, prompt, **options("greedy", LONG))
    figures.append(f"a peer becomes ten times slower: its session is elsewhere {changed[-1] - struck[0]:.1f} s later")
    assert changed[-1] > struck[0]
    assert "overloaded" in watch.changes[-1].reason
    assert not watch.lost


@contextmanager
def slow(peer: ServeProcess) -> Iterator[None]:
    """Its device process gets a tenth of the time."""
    device, over = executor(peer), threading.Event()

    def pulse() -> None:
        while not over.wait(RUNS):
            device.suspend()
            over.wait(STOPS)
            device.resume()

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
