"""The chat page, as a person uses it."""

import json
import re
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, Route, expect

from clients.gateway.keys import parse_keys
from clients.gateway.served import Served
from swarm.errors import Busy, MissingBlocks
from tests.browser.hands import answer, answers, ask, box, chats, complete
from tests.browser.scripted import HOLD, ScriptedCompleter, chain, lost, step
from tests.clients.gateway.live import LiveGateway

CODE = "A list:\n\n- **one**\n- two\n\n```python\ndef f(x):  # why\n    return x + 1\n```\n"
HOLD_CLOSE = """addEventListener("close", (event) => {
  event.stopImmediatePropagation();
  window.letClose = () => event.target.dispatchEvent(new Event("close"));
}, { capture: true, once: true })"""


def test_answer_comes_as_markdown_with_its_figures(page: Page, live: LiveGateway, completer: ScriptedCompleter) -> None:
    completer.script = [chain(("ada", 0, 2), ("bela", 2, 4)), CODE]
    page.goto(live.url)
    ask(page, "Show me")
    said = complete(page)
    expect(said.locator("strong")).to_have_text("one")
    expect(said.locator(".code code")).to_have_text("def f(x):  # why\n    return x + 1")
    expect(said.locator(".code-keyword").first).to_have_text("def")
    tokens = len(completer.tokenizer.encode(CODE)) + 1
    expect(said.locator(".meta")).to_contain_text(f"{tokens} tokens")
    expect(said.locator(".meta")).to_contain_text("first after")
    expect(said.get_by_role("button", name="2 hops")).to_be_visible()


def test_chats_are_there_after_a_reload(page: Page, live: LiveGateway) -> None:
    page.goto(live.url)
    ask(page, "The first question")
    complete(page)
    page.get_by_role("button", name="New chat", exact=True).click()
    ask(page, "Another chat")
    complete(page)
    page.reload()
    expect(page.get_by_text("Another chat").last).to_be_visible()  # the one that was open
    chats(page).get_by_text("The first question").click()
    expect(answer(page)).to_contain_text("Hello there.")
    expect(chats(page)).to_have_count(2)


def test_stopped_answer_keeps_what_came_and_ends_at_the_gateway(
    page: Page, live: LiveGateway, completer: ScriptedCompleter
) -> None:
    completer.script = ["Half of it", HOLD, " and the rest"]
    page.goto(live.url)
    ask(page, "Go on")
    expect(answer(page)).to_contain_text("Half of it")
    page.get_by_role("button", name="Stop").click()
    expect(complete(page)).to_contain_text("Half of it")
    live.wait_for(lambda: completer.played[0].closed)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_answering_again_keeps_the_first_answer(page: Page, live: LiveGateway, completer: ScriptedCompleter) -> None:
    completer.others = {0: ["The first."], 1: ["The second."]}
    page.goto(live.url)
    ask(page, "Say")
    complete(page).get_by_role("button", name="Answer again").click()
    expect(answer(page)).to_contain_text("The second.")
    expect(answer(page).get_by_role("group", name="Answer 2 of 2")).to_be_visible()
    answer(page).get_by_role("button", name="The one before").click()
    expect(answer(page)).to_contain_text("The first.")
    assert completer.asked(0) == completer.asked(1)


def test_edited_question_begins_a_branch(page: Page, live: LiveGateway, completer: ScriptedCompleter) -> None:
    page.goto(live.url)
    ask(page, "Who are you")
    complete(page)
    ask(page, "And why")
    complete(page, 2)
    page.get_by_role("listitem", name="You said").first.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Edit your message").fill("Who is she")
    page.get_by_role("button", name="Send", exact=True).first.click()
    complete(page, 1)
    assert "Who is she" in completer.asked()
    assert "And why" not in completer.asked()
    page.get_by_role("button", name="The one before").click()
    expect(answers(page)).to_have_count(2)
    expect(page.get_by_text("And why")).to_be_visible()


def test_two_tabs_see_each_other_and_lose_nothing(
    context: BrowserContext, live: LiveGateway, completer: ScriptedCompleter
) -> None:
    one, two = context.new_page(), context.new_page()
    one.goto(live.url)
    two.goto(live.url)
    completer.script = ["Half", HOLD, " and half."]
    ask(one, "From the first tab")
    expect(answer(one)).to_contain_text("Half")
    chats(two).get_by_text("From the first tab").click()
    expect(answer(two)).to_contain_text("Half")  # while it grows in the other
    live.call(completer.go_on)
    expect(complete(two)).to_contain_text("Half and half.")
    completer.script = ["To both."]
    ask(one, "One more from the first")
    ask(two, "One more from the second")
    complete(one, 2)
    complete(two, 2)
    one.reload()
    texts = json.loads(one.evaluate("localStorage.getItem(Object.keys(localStorage).find(k => k.includes('chat')))"))
    asked = [node["text"] for node in texts["nodes"].values() if node["role"] == "user"]
    assert sorted(asked) == ["From the first tab", "One more from the first", "One more from the second"]


def test_chat_that_was_deleted_in_one_tab_stays_deleted(context: BrowserContext, live: LiveGateway) -> None:
    one, two = context.new_page(), context.new_page()
    one.goto(live.url)
    ask(one, "Short-lived")
    complete(one)
    two.goto(one.url)
    complete(two)
    chats(two).first.hover()
    two.get_by_role("button", name="Delete Short-lived").click()
    two.get_by_role("button", name="Delete", exact=True).click()
    expect(chats(two)).to_have_count(0)
    expect(chats(one)).to_have_count(0)
    one.reload()
    expect(chats(one)).to_have_count(0)


def test_renamed_chat_keeps_its_name(page: Page, live: LiveGateway) -> None:
    page.goto(live.url)
    ask(page, "What is this")
    complete(page)
    chats(page).first.hover()
    page.get_by_role("button", name="Rename What is this").click()
    page.get_by_role("textbox", name="Name of the chat").fill("A good name")
    page.keyboard.press("Enter")
    page.reload()
    expect(chats(page)).to_contain_text(["A good name"])


def test_whoever_asks_before_the_page_knows_the_models_is_answered(page: Page, live: LiveGateway) -> None:
    held: list[Route] = []
    page.route("**/swarm.json", lambda route: held.append(route))
    page.goto(live.url)
    ask(page, "Quick")
    expect(complete(page)).to_contain_text("Hello there.")
    for route in held:
        route.continue_()


def test_an_adapter_is_chosen_as_a_model_is_and_has_its_swarm(page: Page, served: Served) -> None:
    with LiveGateway([served, replace(served, name="tiny:pirate", adapter="pirate")]) as live:
        page.goto(live.url)
        page.get_by_role("combobox", name="Model").select_option("tiny:pirate")
        expect(page.get_by_role("link", name="The swarm: 3 peers")).to_be_visible()
        with page.expect_request("**/v1/chat/completions") as asked:
            ask(page, "Ahoy")
        assert asked.value.post_data_json["model"] == "tiny:pirate"
        expect(complete(page)).to_contain_text("Hello there.")
        page.goto(f"{live.url}/swarm")
        expect(page.get_by_role("heading", level=2)).to_have_text(["tiny"])


def test_settings_reach_the_model(page: Page, live: LiveGateway, completer: ScriptedCompleter) -> None:
    page.goto(live.url)
    page.get_by_role("button", name="Settings of this chat").click()
    page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    for label, value in {"Temperature": "0.3", "Top p": "0.5", "Most tokens": "77", "Seed": "5"}.items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Done").click()
    page.get_by_role("combobox", name="Model").select_option("other")
    ask(page, "Hi")
    complete(page)
    request = completer.played[0].request
    assert "Be brief." in completer.asked()
    assert (request.sampling.temperature, request.sampling.top_p) == (0.3, 0.5)
    assert (request.sampling.seed, request.max_new_tokens) == (5, 77)


def test_chat_can_be_taken_along(page: Page, live: LiveGateway, tmp_path: Path) -> None:
    page.goto(live.url)
    ask(page, "Take me along")
    complete(page)
    page.get_by_role("button", name="Settings of this chat").click()
    files = {}
    for format_ in ("Markdown", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=format_).click()
        download.value.save_as(tmp_path / format_)
        files[format_] = (tmp_path / format_).read_text()
    assert files["Markdown"] == "# Take me along\n\n## You\n\nTake me along\n\n## tiny\n\nHello there.\n"
    assert len(json.loads(files["JSON"])["nodes"]) == 2


# --- the chain ---------------------------------------------------------------------------------------------------


def test_replaced_hop_is_seen_and_the_answer_goes_on(
    page: Page, live: LiveGateway, completer: ScriptedCompleter
) -> None:
    before = chain(("ada", 0, 2), ("bela", 2, 4))
    after = chain(("ada", 0, 2), ("carl", 2, 4), lost=["bela"], seconds=0.2)
    completer.script = [before, "Half", step(20.0, 30.0), HOLD, lost("bela"), HOLD, after, " and half."]
    page.goto(live.url)
    ask(page, "Go")
    panel = page.get_by_role("complementary", name="The chain of this answer")
    hops = panel.locator(".hop")
    expect(hops).to_contain_text([re.compile(r"ada.*blocks 0:2.*20 ms"), re.compile(r"bela.*blocks 2:4.*30 ms")])
    live.call(completer.go_on)
    expect(hops.nth(1)).to_have_attribute("data-lost", "true")
    live.call(completer.go_on)
    expect(panel).to_contain_text("carl took over blocks 2:4 from bela, 0.2 s")
    said = complete(page)
    expect(said).to_contain_text("Half and half.")
    expect(said).to_contain_text("carl took over blocks 2:4 from bela, 0.2 s")


def test_every_answer_remembers_its_own_chain(page: Page, live: LiveGateway, completer: ScriptedCompleter) -> None:
    completer.others = {
        0: [chain(("ada", 0, 2), ("bela", 2, 4)), "One."],
        1: [chain(("ada", 0, 2), ("carl", 2, 4)), "Two."],
    }
    page.goto(live.url)
    ask(page, "First")
    complete(page)
    ask(page, "Second")
    expect(complete(page, 2)).to_contain_text("Two.")
    panel = page.get_by_role("complementary", name="The chain of this answer")
    expect(panel.locator(".hop b")).to_have_text(["ada", "carl"])
    page.reload()
    expect(answer(page)).to_contain_text("Two.")
    expect(panel.locator(".hop b")).to_have_text(["ada", "carl"])
    answers(page).first.get_by_role("button", name="2 hops").click()
    expect(panel.locator(".hop b")).to_have_text(["ada", "bela"])


# --- trouble -----------------------------------------------------------------------------------------------------


def test_failure_is_said_in_words_and_can_be_tried_again(
    page: Page, live: LiveGateway, completer: ScriptedCompleter
) -> None:
    completer.others = {
        0: [Busy("all peers are full", retry_after=3.0)],
        1: ["Half", MissingBlocks((2, 3), "no peer serves blocks 2:4 of tiny")],
        2: ["Whole."],
    }
    page.goto(live.url)
    ask(page, "Try")
    expect(complete(page).get_by_role("alert")).to_contain_text("All peers are full. Worth another try in 3 seconds.")
    answer(page).get_by_role("button", name="Try again").click()
    expect(answer(page).get_by_role("alert")).to_contain_text("No peer serves blocks 2:4 of tiny.")
    expect(answer(page)).to_contain_text("Half")
    answer(page).get_by_role("button", name="Try again").click()
    expect(answer(page)).to_contain_text("Whole.")


def test_gateway_that_goes_away_is_noticed(page: Page, served: Served, completer: ScriptedCompleter) -> None:
    completer.script = ["Half", HOLD]
    with LiveGateway([served]) as live:
        page.goto(live.url)
        ask(page, "Go")
        expect(answer(page)).to_contain_text("Half")
    expect(complete(page).get_by_role("alert")).to_contain_text("broke off")
    answer(page).get_by_role("button", name="Try again").click()
    expect(complete(page).get_by_role("alert")).to_contain_text("can't be reached")


def test_key_is_asked_for_and_kept_for_the_tab_only(page: Page, served: Served) -> None:
    key = "sk-" + "k" * 24
    with LiveGateway([served], keys=parse_keys([key])) as live:
        page.goto(live.url)
        page.get_by_role("button", name="Enter it").click()
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_text("wants an API key")).to_be_hidden()
        ask(page, "Hi")
        expect(complete(page)).to_contain_text("Hello there.")
        assert key not in page.evaluate("JSON.stringify(localStorage)")
        assert key in page.evaluate("JSON.stringify(sessionStorage)")


# --- by keyboard -------------------------------------------------------------------------------------------------


def test_everything_can_be_done_by_keyboard(page: Page, live: LiveGateway, completer: ScriptedCompleter) -> None:
    completer.others = {0: ["Half", HOLD]}
    page.goto(live.url)
    expect(box(page)).to_be_focused()
    page.keyboard.type("two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Enter")
    expect(answer(page)).to_contain_text("Half")
    assert "two\nlines" in completer.asked()
    page.keyboard.press("Escape")
    complete(page)
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("textbox", name="Edit your message")).to_be_focused()
    page.keyboard.type(", really")
    page.keyboard.press("Enter")
    expect(complete(page)).to_contain_text("Hello there.")
    page.keyboard.press("Alt+n")
    expect(page.get_by_role("heading", name="Ask the swarm")).to_be_visible()
    expect(box(page)).to_be_focused()
    page.keyboard.press("Alt+ArrowDown")
    expect(answer(page)).to_contain_text("Hello there.")
    page.keyboard.press("Alt+Comma")
    expect(page.get_by_role("dialog", name="Settings of this chat")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()


def test_a_dialog_gives_the_focus_back_once_however_late_it_is_removed(page: Page, live: LiveGateway) -> None:
    page.goto(live.url)
    expect(box(page)).to_be_focused()
    page.keyboard.press("Alt+Comma")
    expect(page.get_by_role("dialog", name="Settings of this chat")).to_be_visible()
    page.evaluate(HOLD_CLOSE)
    page.keyboard.press("Escape")
    expect(box(page)).to_be_focused()
    page.keyboard.press("Tab")
    page.wait_for_function("window.letClose")
    page.evaluate("letClose()")
    expect(page.locator("dialog")).to_have_count(0)
    expect(box(page)).not_to_be_focused()


def test_a_dialog_closed_by_its_button_gives_the_focus_back(page: Page, live: LiveGateway) -> None:
    page.goto(live.url)
    expect(box(page)).to_be_focused()
    page.keyboard.press("Alt+Comma")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(box(page)).to_be_focused()
