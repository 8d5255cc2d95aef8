"""Debian's Chromium, driven by Playwright, on the pages of a gateway in this process."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright
from transformers import PreTrainedTokenizerFast

from clients.gateway.served import Served
from swarm.ids import Span
from tests.browser.scripted import ScriptedCompleter
from tests.clients.gateway.bytes_tokenizer import END, bytes_tokenizer
from tests.clients.gateway.live import LiveGateway, record, view_of

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 15_000  # ms that a page may take for anything


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is on the PATH")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=as_root)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """What one person's browser keeps. Fails the test for anything that a page's console calls an error."""
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        refused = message.text.startswith("Failed to load resource")  # statuses are the gateway's to give
        if message.type == "error" and not refused:
            complaints.append(message.text)

    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(PATIENCE)
        context.on("console", heard)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        yield context
    assert complaints == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return bytes_tokenizer()


@pytest.fixture
def completer(tokenizer: PreTrainedTokenizerFast) -> ScriptedCompleter:
    return ScriptedCompleter(tokenizer)


@pytest.fixture
def served(completer: ScriptedCompleter, tokenizer: PreTrainedTokenizerFast) -> Served:
    """The model "tiny" of four blocks, held by two peers."""
    view = view_of(record("ada", Span(0, 2)), record("bela", Span(2, 4)), record("carl", Span(2, 4)))
    return Served(
        name="tiny",
        created=1_700_000_000,
        tokenizer=tokenizer,
        completer=completer,
        max_positions=100_000,
        end_tokens=frozenset({END}),
        look=lambda: view,
    )


@pytest.fixture
def live(served: Served) -> Iterator[LiveGateway]:
    """Serves "tiny" and a second model, "other"."""
    with LiveGateway([served, replace(served, name="other")]) as gateway:
        yield gateway
