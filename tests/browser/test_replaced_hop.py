"""A peer dies while it computes an answer: the page shows who took over, and the answer is the one it would have been.
Real engines on a tiny model, a swarm in memory, real time."""

from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from clients.client import Client
from clients.completion.limits import Limits
from clients.completion.shared import SharedModel
from clients.connection import Connection
from clients.gateway.served import Served
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import resolve
from swarm.ids import Span
from swarm.memory import MemoryNetwork
from tests.browser.hands import answer, ask, complete
from tests.clients.gateway.bytes_tokenizer import VOCAB, save_tokenizer
from tests.clients.gateway.live import LiveGateway
from tests.memory_swarm import MemorySwarm
from tests.models import tiny_model

BLOCKS = {"ada": Span(0, 2), "bela": Span(2, 4), "carl": Span(2, 4)}
PATIENCE = 5.0  # s


class Swarm:
    """Three peers, of which two hold the same blocks, and a model over them."""

    def __init__(self, folder: Path, cache: Path, stack: ExitStack) -> None:
        self.memory = MemorySwarm(resolve(str(folder), cache=cache), MemoryNetwork())
        self.connection = Connection(self._enter, patience=PATIENCE)
        stack.callback(self.connection.close)
        self.model = stack.enter_context(
            SwarmModelForCausalLM.from_pretrained(folder, cache=cache, connection=self.connection)
        )

    async def _enter(self, stack: AsyncExitStack) -> Client:
        await stack.enter_async_context(self.memory)
        for name, blocks in BLOCKS.items():
            await self.memory.add(name, blocks, step_seconds=0.01)
        return await self.memory.client()

    def kill(self, name: str) -> None:
        self.connection.call(self.memory.kill(name))


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    folder = tiny_model("llama", tmp_path / "bytes", vocab_size=VOCAB)
    save_tokenizer(folder)
    with ExitStack() as stack:
        yield Swarm(folder, tmp_path / "cache", stack)


@pytest.fixture
def live(swarm: Swarm, served: Served) -> Iterator[LiveGateway]:
    shared = SharedModel(swarm.model, Limits(lanes=1))
    look = swarm.connection.client
    real = replace(served, completer=shared, max_positions=1024, end_tokens=frozenset(), look=lambda: look.view)
    with LiveGateway([real]) as gateway:
        yield gateway
    shared.close()


def test_killed_peer_is_replaced_before_ones_eyes(page: Page, live: LiveGateway, swarm: Swarm) -> None:
    page.goto(live.url)
    page.evaluate("localStorage['swarm.settings'] = JSON.stringify({temperature: 0, max_tokens: 80})")
    page.reload()
    ask(page, "Go on")
    complete(page)
    panel = page.get_by_role("complementary", name="The chain of this answer")
    first = panel.locator(".hop b").nth(1)
    undisturbed = answer(page).locator(".prose").inner_text()
    answer(page).get_by_role("button", name="Answer again").click()
    expect(answer(page)).to_have_attribute("aria-busy", "true")
    expect(answer(page).locator(".prose")).not_to_be_empty()
    victim = first.inner_text()
    swarm.kill(victim)
    other = "carl" if victim == "bela" else "bela"
    told = f"{other} took over blocks 2:4 from {victim}"
    expect(panel).to_contain_text(told)
    expect(answer(page)).to_contain_text(told)
    assert complete(page).locator(".prose").inner_text() == undisturbed
    expect(answer(page).locator(".meta")).to_contain_text("80 tokens")
