"""What strangers send does nothing on the pages: neither a model's words nor the names of peers."""

import json
from dataclasses import replace

import pytest
from playwright.sync_api import Page, Request, expect

from clients.gateway.served import Served
from swarm.ids import Span
from tests.browser.hands import answer, ask, complete
from tests.browser.scripted import ScriptedCompleter, chain, lost
from tests.clients.gateway.live import LiveGateway, record, view_of

MARKUP = """
<img src="x" onerror="window.hurt = 1"> <script>window.hurt = 1</script> <svg onload="window.hurt = 1"></svg>
<iframe src="javascript:parent.hurt = 1"></iframe> <details open ontoggle="window.hurt = 1">d</details>

<form action="/v1/models"><input name="a"><button formaction="javascript:window.hurt=1">b</button></form>

<style>body { display: none }</style> <link rel="stylesheet" href="https://example.org/a.css"> <base href="https://example.org/">

<div id="app" class="notice" style="position: fixed">taken over</div> <math><mtext><img src=x onerror="window.hurt=1">

[script](javascript:window.hurt=1) [data](data:text/html,<script>window.hurt=1</script>) [good](https://example.org/page)
[inside](/v1/models) ![beacon](https://example.org/beacon.png) <a href="java&#10;script:window.hurt=1">odd</a>

```html"><img src=x onerror=window.hurt=1>
<script>window.hurt = 1</script>
```

<p title="a"><b>still here</b></p>
"""
NAME = '<img src=x onerror="window.hurt=1">'


@pytest.fixture
def asked_elsewhere(page: Page, live: LiveGateway) -> list[str]:
    """Addresses outside of the gateway that the page has asked for."""
    found: list[str] = []

    def heard(request: Request) -> None:
        if not request.url.startswith((live.url, "blob:")):
            found.append(request.url)

    page.on("request", heard)
    return found


def test_markup_of_a_model_does_nothing(
    page: Page, live: LiveGateway, completer: ScriptedCompleter, asked_elsewhere: list[str]
) -> None:
    completer.script = [MARKUP]
    page.goto(live.url)
    ask(page, MARKUP)
    said = complete(page)
    expect(said).to_contain_text("still here")
    expect(said).to_contain_text("<script>window.hurt = 1</script> <svg")
    page.reload()  # and none when it comes out of storage
    expect(complete(page)).to_contain_text("still here")
    assert page.evaluate("window.hurt") is None
    assert asked_elsewhere == []
    inside = page.locator(".prose")
    for tag in ("img", "script", "svg", "iframe", "form", "input", "style", "link", "base", "math", "object"):
        expect(inside.locator(tag)).to_have_count(0)
    attributes = page.evaluate(
        "[...document.querySelectorAll('.prose .block :not(.code, .code *)')].flatMap(e => e.getAttributeNames())"
    )
    assert set(attributes) <= {"href", "title", "rel", "target"}
    assert page.locator("#app").count() == 1


def test_links_of_a_model_lead_only_to_the_web_and_apart(
    page: Page, live: LiveGateway, completer: ScriptedCompleter
) -> None:
    completer.script = [MARKUP]
    page.goto(live.url)
    ask(page, "Links")
    links = complete(page).locator("a[href]")
    expect(links).to_have_count(1)
    expect(links).to_have_attribute("href", "https://example.org/page")
    expect(links).to_have_attribute("rel", "noopener noreferrer")
    expect(links).to_have_attribute("target", "_blank")


def test_names_of_peers_are_words_only(page: Page, served: Served, completer: ScriptedCompleter) -> None:
    view = view_of(record(NAME, Span(0, 4)), record("\u202eada", Span(2, 4)))
    before, after = chain((NAME, 0, 2), ("bela", 2, 4)), chain((NAME, 0, 2), ("<b>carl</b>", 2, 4), lost=["bela"])
    completer.script = [before, "Half", lost("bela"), after, " and half."]
    with LiveGateway([replace(served, look=lambda: view)]) as live:
        page.goto(live.url)
        expect(page.get_by_role("heading", name="Ask the swarm").locator("..")).to_contain_text("<img src=x")
        ask(page, "Go")
        complete(page)
        panel = page.get_by_role("complementary", name="The chain of this answer")
        expect(panel.locator(".hop b").first).to_contain_text("<img src=x")
        expect(panel).to_contain_text("<b>carl</b> took over blocks 2:4 from bela")
        page.goto(f"{live.url}/swarm")
        expect(page.get_by_role("listitem").first).to_contain_text("<img src=x")
        assert page.evaluate("window.hurt") is None
        assert page.evaluate("document.querySelectorAll('main img').length") == 0
        assert "\u202e" not in page.evaluate("document.body.innerText")


def test_strange_storage_does_not_keep_the_page_from_starting(page: Page, live: LiveGateway) -> None:
    page.goto(live.url)
    message = {"x": {"id": "x", "role": "assistant", "text": "old"}}
    strange = {
        "swarm.chat.a": "{",
        "swarm.chat.b": json.dumps({"id": "b", "nodes": {"x": {**message["x"], "text": 5}}, "head": "x"}),
        "swarm.chat.c": json.dumps({"id": "c", "title": {}, "nodes": message, "head": "x"}),
        "swarm.settings": "[1",
    }
    page.evaluate("strange => Object.assign(localStorage, strange)", strange)
    page.goto(f"{live.url}/#c")
    page.reload()
    expect(answer(page)).to_contain_text("old")
    page.get_by_role("button", name="New chat", exact=True).click()
    ask(page, "Hi")
    complete(page)
