"""How long a reader waits when the peer in the middle is killed, a hundred times: from SIGKILL to the next token that
needs it.

A spare serves the same blocks. Who was killed is replaced, and the client knows of the new one, before the next is
killed. SWARM_SOAK_KILLS=20 makes fewer.
"""

import math
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pytest
from transformers import LogitsProcessorList, PreTrainedModel

from clients.connection import Connection
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from swarm.record import PeerState
from swarm.subprocesses import ServeProcess
from tests.real.conftest import MIDDLE, SPANS
from tests.real.herd import Herd
from tests.real.prompts import Text, answers, options
from tests.real.watching import AtToken, Watch
from tests.soak.plans import CONTEXT, SEED
from tests.soak.waits import said

KILLS = int(os.environ.get("SWARM_SOAK_KILLS") or 100)
STARTS = tuple(range(0, 970, 97))  # of prompts, in the text
NEW = 32
EARLIEST, LATEST = 8, 24  # tokens, after which a peer is killed
WITHIN = 0.06  # seconds after that token
PATIENCE = 90.0
KNOWN_SECONDS = 60.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(60 * KILLS + 600)]


@pytest.fixture(scope="module")
def herd(checkpoint: Checkpoint, cache: Path) -> Iterator[Herd]:
    with Herd(checkpoint, cache) as herd:
        herd.ensure({**dict.fromkeys(SPANS, 1), MIDDLE: 2})
        yield herd
    assert herd.left_behind() == []


@pytest.fixture(scope="module")
def expected(local: PreTrainedModel, text: Text) -> Callable[[int], list[list[int]]]:
    """What the whole model says to the prompt that begins there, computed when it is first asked for."""
    return lru_cache(maxsize=len(STARTS))(
        lambda start: answers(local, text.prompt(CONTEXT, start), **options("greedy", NEW))
    )


@dataclass
class Gaps:
    """Seconds of each kill, from the signal to the next token; `mended`: of it, until the chain was whole again."""

    whole: list[float] = field(default_factory=list)
    mended: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"from the signal to the next token at about {CONTEXT + EARLIEST} to {CONTEXT + LATEST} tokens, "
            f"{said(self.whole)}; mending took {statistics.median(self.mended):.3f} s of it"
        )


class Strike:
    """SIGKILL to whoever serves the middle, `delay` seconds after a token; `moment` is just before it."""

    def __init__(self, herd: Herd, watch: Watch, delay: float) -> None:
        self.moment = math.inf
        self.victim: ServeProcess | None = None
        self._herd = herd
        self._watch = watch
        self._timer = threading.Timer(delay, self._strike)

    def begin(self) -> None:
        self._timer.start()

    def end(self) -> None:
        self._timer.join()

    def _strike(self) -> None:
        victim = self._herd.named(self._watch.chain[1])
        self.moment = time.monotonic()
        victim.kill()
        self.victim = victim


def test_reader_waits_for_a_hot_spare(
    herd: Herd, text: Text, expected: Callable[[int], list[list[int]]], figures: list[str]
) -> None:
    watch, gaps, draw = Watch(), Gaps(), random.Random(SEED)
    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, patience=PATIENCE, observer=watch.hear
    ) as model:
        for number in range(KILLS):
            prepare(herd, model)
            strike = Strike(herd, watch, draw.uniform(0, WITHIN))
            seen = AtToken(draw.randint(EARLIEST, LATEST), strike.begin)
            start = STARTS[number % len(STARTS)]
            prompt = text.prompt(CONTEXT, start)
            ours = answers(model, prompt, logits_processor=LogitsProcessorList([seen]), **options("greedy", NEW))
            strike.end()
            assert strike.victim is not None
            strike.victim.wait()
            assert ours == expected(start)
            gaps.whole.append(wait_after(strike.moment, seen.times))
            gaps.mended.append(watch.changes[-1].seconds)
    figures.append(f"a hot spare: {gaps}")
    assert len(gaps.whole) == KILLS


def wait_after(moment: float, times: Sequence[float]) -> float:
    """Seconds from a peer's death to the next token that needed it: one that was past it by then may come before."""
    first, second, *_ = [at for at in times if at > moment]
    return (first if first - moment > second - first else second) - moment


def prepare(herd: Herd, model: SwarmModelForCausalLM) -> None:
    """Bury the dead, start who is missing and wait until the client knows of them. Fails after KNOWN_SECONDS."""
    herd.ensure({**dict.fromkeys(SPANS, 1), MIDDLE: 2})
    living = {process.ready.peer_id for process in herd.living}
    connection = model._connection
    assert isinstance(connection, Connection)
    deadline = time.monotonic() + KNOWN_SECONDS
    while not living <= {one.peer for one in connection.client.view.peers if one.state is PeerState.ONLINE}:
        assert time.monotonic() < deadline, "the client never heard of the spare"
        connection.call(connection.client.change(0.5))
