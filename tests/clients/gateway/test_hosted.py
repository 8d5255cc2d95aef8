"""Adapters of peers at a gateway: as many open at once as may be, and room for the next when one is idle."""

from dataclasses import replace

import pytest

from clients.completion.limits import Limits
from clients.completion.request import Request
from clients.completion.shared import SharedModel
from clients.gateway.hosted import HostedAdapters
from clients.gateway.served import Served
from clients.model import SwarmModelForCausalLM
from swarm.errors import Busy, UsageError
from swarm.ids import Span
from tests.clients.completion.asking import GREEDY, ask, read
from tests.clients.gateway.live import record, view_of
from tests.clients.local_session import LocalConnection

ASKED = Request(prompt=(5, 6, 7), max_new_tokens=3, sampling=GREEDY)
HOSTED = (("a", "00" * 16), ("b", "11" * 16), ("c", "22" * 16))


@pytest.mark.anyio
async def test_an_idle_adapter_makes_room_for_the_next_and_a_busy_one_does_not(
    played: Served, model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    view = view_of(replace(record("ada", Span(0, 4)), adapters=HOSTED))
    opened: list[tuple[str, SharedModel]] = []

    def open_one(digest: str) -> SharedModel:
        opened.append((digest, SharedModel(model, Limits(lanes=1))))
        return opened[-1][1]

    async with HostedAdapters(replace(played, look=lambda: view), open_one, taken=["c"], most=1) as hosted:
        listed = {served.adapter: served for served in hosted.listed()}
        assert [*listed] == ["a", "b", "c@22222222"]
        connection.gate.clear()
        running = listed["a"].completer.submit(ASKED)
        with pytest.raises(Busy, match="1 other adapters"):
            listed["b"].completer.submit(ASKED)
        connection.gate.set()
        assert len((await read(running)).tokens()) == 3  # type: ignore[arg-type]
        assert len((await ask(listed["a"].completer, ASKED)).tokens()) == 3
        assert len((await ask(hosted.get("b@11").completer, ASKED)).tokens()) == 3
    assert [digest for digest, _ in opened] == ["00" * 16, "11" * 16]
    for _, shared in opened:
        with pytest.raises(UsageError, match="closed"):
            shared.submit(ASKED)
