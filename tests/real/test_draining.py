"""Peers of a real swarm are told to leave while they compute: sessions move, or a second signal cuts them off."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
from transformers import LogitsProcessorList, PreTrainedModel

from clients.model import SwarmModelForCausalLM
from swarm.errors import MissingBlocks
from swarm.ids import PeerId
from tests.real.conftest import MIDDLE, SPANS
from tests.real.herd import START_SECONDS, Herd
from tests.real.prompts import Text, answers, options
from tests.real.watching import AtToken, Watch

STREAMS = 3
NEW = 24
TOLD_AT = 4
LONG = "600"  # s


def test_peer_told_to_leave_under_load_hands_all_streams_over(herd: Herd, local: PreTrainedModel, text: Text) -> None:
    herd.ensure({**dict.fromkeys(SPANS, 1), MIDDLE: 2})
    moved = Event()
    told: list[tuple[PeerId, int]] = []  # who, and how many streams it has

    def hear(_: object) -> None:
        if told and sum(bool(change.left) for change in watch.changes) == told[0][1]:
            moved.set()

    watch = Watch(hear)

    def tell() -> None:
        """Both of the middle may have streams, as each is loaded."""
        told.extend(Counter(change.hops[1].peer for change in watch.changes).most_common(1))
        herd.named(told[0][0]).terminate()

    prompts = [text.prompt(40 + 20 * number) for number in range(STREAMS)]
    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, observer=watch.hear
    ) as model:
        together = Barrier(STREAMS, tell, START_SECONDS)

        def ask(number: int) -> list[list[int]]:
            early, late = AtToken(TOLD_AT, together.wait), AtToken(NEW - 2, lambda: moved.wait(START_SECONDS))
            return answers(
                model, prompts[number], logits_processor=LogitsProcessorList([early, late]), **options("greedy", NEW)
            )

        with ThreadPoolExecutor(STREAMS) as pool:
            ours = list(pool.map(ask, range(STREAMS)))
    assert ours == [answers(local, prompt, **options("greedy", NEW)) for prompt in prompts]
    ((leaver, streams),) = told
    assert [change.left for change in watch.changes if change.left] == [(leaver,)] * streams
    assert (watch.losses, watch.lost, watch.waiting.is_set()) == ([], set(), False)
    process = herd.named(leaver)
    assert process.wait(START_SECONDS) == 0
    process.wait_line(f"drained: {streams} sessions of {streams}")


def test_second_signal_leaves_at_once(herd: Herd, text: Text) -> None:
    herd.ensure(dict.fromkeys(SPANS, 1))
    for other in herd.of(MIDDLE):
        herd.kill(other)
    herd.bury()
    last = herd.start(MIDDLE, "--drain-limit", LONG)
    last.wait_ready(START_SECONDS)

    def leave() -> None:
        last.terminate()
        last.wait_line("draining")
        last.terminate()
        last.wait(START_SECONDS)

    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, patience=2.0
    ) as model:
        logits = LogitsProcessorList([AtToken(TOLD_AT, leave)])
        with pytest.raises(MissingBlocks):
            answers(model, text.prompt(17), logits_processor=logits, **options("greedy", NEW))
