"""What a person does on the page, and where the eye finds what comes of it."""

from playwright.sync_api import Locator, Page, expect

__all__ = ["answer", "answers", "ask", "box", "chats", "complete"]


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message", exact=True)


def answers(page: Page) -> Locator:
    return page.get_by_role("listitem", name="Answer", exact=True)


def answer(page: Page) -> Locator:
    """The last one."""
    return answers(page).last


def chats(page: Page) -> Locator:
    return page.get_by_role("navigation", name="Chats").get_by_role("listitem")


def ask(page: Page, text: str) -> None:
    box(page).fill(text)
    box(page).press("Enter")


def complete(page: Page, number: int = 1) -> Locator:
    """Waits until there are so many answers and the last of them has ended; returns it."""
    expect(answers(page)).to_have_count(number)
    expect(answer(page)).to_have_attribute("aria-busy", "false")
    return answer(page)
