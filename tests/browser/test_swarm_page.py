"""The page of the whole swarm, and what the chat page says of it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from clients.gateway.served import Served
from routing.view import View
from swarm.ids import Span
from swarm.record import PeerState
from tests.browser.hands import ask, complete
from tests.clients.gateway.live import LiveGateway, record, view_of

HALF = view_of(record("ada", Span(0, 2)))
WHOLE = view_of(record("ada", Span(0, 2)), record("bela", Span(2, 4)), record("carl", Span(2, 4)))
MOVING = view_of(
    record("ada", Span(0, 4)),
    record("bela", Span(1, 3), state=PeerState.JOINING),
    record("carl", Span(2, 4), state=PeerState.DRAINING),
)


class Views:
    """What the gateway sees now."""

    def __init__(self) -> None:
        self.now: View = HALF


@pytest.fixture
def views() -> Views:
    return Views()


@pytest.fixture
def live(served: Served, views: Views) -> Iterator[LiveGateway]:
    with LiveGateway([replace(served, look=lambda: views.now)]) as gateway:
        yield gateway


def test_picture_follows_the_swarm(page: Page, live: LiveGateway, views: Views) -> None:
    page.goto(f"{live.url}/swarm")
    model = page.get_by_role("region", name="tiny")
    expect(model).to_contain_text("Blocks 2:4 are missing: no answers until a peer brings them.")
    expect(model.get_by_role("img", name="Online peers on each block: 0:2 on 1, 2:4 on 0.")).to_be_visible()
    live.call(setattr, views, "now", WHOLE)
    expect(model).to_contain_text("Complete, but some blocks stand on one peer only.")
    expect(model.get_by_role("img", name="0:2 on 1, 2:4 on 2. Weakest: 0:2.")).to_be_visible()
    expect(model.get_by_role("listitem").locator("b")).to_have_text(["ada", "bela", "carl"])
    live.call(setattr, views, "now", MOVING)
    expect(model.get_by_role("listitem")).to_contain_text(["50 tok/s", "joining", "draining"])


def test_connection_that_is_lost_is_said(page: Page, served: Served) -> None:
    with LiveGateway([served]) as live:
        page.goto(f"{live.url}/swarm")
        expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("status")).to_have_text("not connected, trying again")


def test_chat_page_says_what_is_missing_and_goes_on_by_itself(page: Page, live: LiveGateway, views: Views) -> None:
    page.goto(live.url)
    expect(page.get_by_text("The swarm lacks blocks 2:4 of tiny.")).to_be_visible()
    live.call(setattr, views, "now", WHOLE)
    expect(page.get_by_text("The swarm lacks")).to_be_hidden()
    expect(page.get_by_role("link", name="The swarm: 3 peers")).to_be_visible()
    ask(page, "Hi")
    complete(page)


def test_narrow_page_needs_no_scrolling_aside(page: Page, live: LiveGateway, views: Views) -> None:
    views.now = WHOLE
    page.set_viewport_size({"width": 320, "height": 640})
    for path in ("/", "/swarm"):
        page.goto(live.url + path)
        page.get_by_role("main").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
