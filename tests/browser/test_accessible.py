"""axe finds nothing on either page, in either colours, at the size of a desk and of a phone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from clients.gateway.served import Served
from swarm.errors import MissingBlocks
from swarm.ids import Span
from swarm.record import PeerState
from tests.browser.hands import ask, complete
from tests.browser.scripted import ScriptedCompleter, chain, lost, step
from tests.clients.gateway.live import LiveGateway, record, view_of

AXE = (Path(__file__).parent / "vendor" / "axe.js").read_text()
SIZES = {"desk": (1280, 800), "phone": (360, 720)}
TEXT = """# Title

Some `code`, a [link](https://example.org), a list:

1. one
2. two

> said

| a | b |
|---|---|
| 1 | 2 |

```python
def f():  # why
    return 'a' + 1
```
"""
SETTLED = """Promise.allSettled(
    document.getAnimations().filter((a) => a.effect.getTiming().iterations === 1).map((a) => a.finished)
)"""  # what fades in is judged when it is there


def findings(page: Page) -> list[str]:
    page.evaluate(AXE)
    page.evaluate(SETTLED)
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['impact']} {one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["light", "dark"])
def coloured(request: pytest.FixtureRequest, page: Page, size: str) -> Page:
    colours: Literal["light", "dark"] = request.param
    width, height = SIZES[size]
    page.emulate_media(color_scheme=colours, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": height})
    return page


@pytest.fixture
def live(served: Served) -> Iterator[LiveGateway]:
    view = view_of(
        record("ada", Span(0, 2)),
        record("bela", Span(1, 4)),
        record("carl", Span(0, 3), state=PeerState.JOINING),
        record("dora", Span(2, 4), state=PeerState.DRAINING),
    )
    with LiveGateway([replace(served, look=lambda: view)]) as gateway:
        yield gateway


def test_chat_page_is_accessible(coloured: Page, size: str, live: LiveGateway, completer: ScriptedCompleter) -> None:
    page = coloured
    before, after = chain(("ada", 0, 2), ("bela", 2, 4)), chain(("ada", 0, 2), ("carl", 2, 4), lost=["bela"])
    completer.others = {
        0: [before, TEXT, step(20.0, 30.0), lost("bela"), after, "The end."],
        1: ["Half", MissingBlocks((2, 3), "no peer serves blocks 2:4 of tiny")],
    }
    page.goto(live.url)
    page.get_by_role("heading", name="Ask the swarm").wait_for()
    assert findings(page) == []
    ask(page, "Show everything")
    complete(page).get_by_role("button", name="Answer again").click()
    expect(complete(page).get_by_role("alert")).to_be_visible()
    assert findings(page) == []
    page.get_by_role("button", name="The one before").click()
    if size == "phone":
        page.get_by_role("button", name="The chain of this answer").click()
    expect(page.get_by_role("complementary").get_by_text("took over")).to_be_visible()
    assert findings(page) == []
    page.keyboard.press("Escape")
    if size == "phone":
        page.get_by_role("button", name="Chats").click()
        assert findings(page) == []
        page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings of this chat").click()
    assert findings(page) == []


def test_swarm_page_is_accessible(coloured: Page, live: LiveGateway) -> None:
    coloured.goto(f"{live.url}/swarm")
    coloured.get_by_role("region", name="tiny").wait_for()
    assert findings(coloured) == []


def test_drawers_of_a_phone_give_the_focus_back(page: Page, live: LiveGateway) -> None:
    page.set_viewport_size({"width": 360, "height": 720})
    page.goto(live.url)
    button = page.get_by_role("button", name="Chats")
    button.click()
    expect(page.get_by_role("button", name="New chat", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(button).to_be_focused()
