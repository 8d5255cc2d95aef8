"""Peers of a real swarm fail in mid-answer: killed, hanging, missing, and back again."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from transformers import LogitsProcessorList, PreTrainedModel

from clients.model import SwarmModelForCausalLM
from swarm.errors import MissingBlocks
from swarm.ids import Span
from tests.real.conftest import MIDDLE, SPANS
from tests.real.herd import Herd, executor
from tests.real.prompts import Text, answers, options
from tests.real.watching import AtToken, Watch

NEW = 10
KILL_AT = 3


@contextmanager
def client(herd: Herd, watch: Watch, patience: float = 60.0) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, patience=patience, observer=watch.hear
    ) as model:
        yield model


@pytest.fixture
def spared(herd: Herd) -> Herd:
    """A spare for the middle blocks."""
    herd.ensure({**dict.fromkeys(SPANS, 1), MIDDLE: 2})
    return herd


@pytest.fixture
def bare(herd: Herd) -> Herd:
    """One peer for the middle blocks."""
    herd.ensure(dict.fromkeys(SPANS, 1))
    for spare in herd.of(MIDDLE)[1:]:
        herd.kill(spare)
    herd.bury()
    return herd


# In an order in which few peers have to be started: first those who only suffer, then those who die.


def test_hop_that_hangs_is_replaced_and_tokens_are_identical(spared: Herd, local: PreTrainedModel, text: Text) -> None:
    watch = Watch()

    def hang() -> None:
        spared.named(watch.chain[1]).stop()

    with client(spared, watch) as model:
        prompt, before = text.batch((5, 30, 12, 1)), AtToken(KILL_AT, hang)
        try:
            ours = answers(model, prompt, logits_processor=LogitsProcessorList([before]), **options("beams", NEW))
        finally:
            spared.named(watch.changes[0].hops[1].peer).resume()
    assert ours == answers(local, prompt, **options("beams", NEW))
    assert watch.changes[0].hops[1].peer in watch.lost


def test_killed_device_process_costs_no_token(spared: Herd, local: PreTrainedModel, text: Text) -> None:
    watch = Watch()

    def kill() -> None:
        executor(spared.named(watch.chain[1])).kill()

    with client(spared, watch) as model:
        prompt, before = text.prompt(60), AtToken(KILL_AT, kill)
        ours = answers(model, prompt, logits_processor=LogitsProcessorList([before]), **options("sampling", NEW))
    assert ours == answers(local, prompt, **options("sampling", NEW))
    assert watch.changes[0].hops[1].peer in watch.lost
    spared.named(watch.changes[0].hops[1].peer).wait_line("online again")


def test_killed_hop_is_replaced_and_tokens_are_identical(spared: Herd, local: PreTrainedModel, text: Text) -> None:
    watch = Watch()

    def kill() -> None:
        spared.kill(spared.named(watch.chain[1]))

    with client(spared, watch) as model:
        prompt, before = text.prompt(60), AtToken(KILL_AT, kill)
        ours = answers(model, prompt, logits_processor=LogitsProcessorList([before]), **options("greedy", NEW))
    first, last = watch.changes[0], watch.changes[-1]
    assert ours == answers(local, prompt, **options("greedy", NEW))
    assert watch.lost == {first.hops[1].peer}
    assert [hop.peer for hop in last.hops if hop in first.hops] == [first.hops[0].peer, first.hops[2].peer]


def test_missing_blocks_are_named_when_patience_ends(bare: Herd, text: Text) -> None:
    watch = Watch()

    def kill() -> None:
        bare.kill(bare.of(MIDDLE)[0])

    before = AtToken(KILL_AT, kill)
    with client(bare, watch, patience=2.0) as model, pytest.raises(MissingBlocks) as caught:
        answers(model, text.prompt(60), logits_processor=LogitsProcessorList([before]), **options("greedy", NEW))
    assert Span(caught.value.blocks[0], caught.value.blocks[-1] + 1) == MIDDLE
    assert str(MIDDLE) in str(caught.value)


def test_waiting_generation_goes_on_by_itself_when_a_peer_joins(bare: Herd, local: PreTrainedModel, text: Text) -> None:
    watch = Watch()

    def kill() -> None:
        bare.kill(bare.of(MIDDLE)[0])

    with client(bare, watch, patience=120.0) as model, ThreadPoolExecutor(1) as pool:
        prompt, before = text.prompt(60), AtToken(KILL_AT, kill)
        logits = LogitsProcessorList([before])
        running = pool.submit(lambda: answers(model, prompt, logits_processor=logits, **options("greedy", NEW)))
        assert watch.waiting.wait(60)
        bare.ensure({MIDDLE: 1})
        ours = running.result(120)
    assert ours == answers(local, prompt, **options("greedy", NEW))
    assert bare.of(MIDDLE)[0].ready.peer_id in watch.chain
