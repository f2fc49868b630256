"""What tests do with the page again and again."""

from playwright.sync_api import Page, expect
from support.fake_chat_server import FakeChat


def ask(page: Page, text: str, wait: bool = True) -> None:
    """Sends a message; by default waits until the answer has ended."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")
    if wait:
        ended(page)


def ended(page: Page) -> None:
    """Waits until no answer is under way."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def last_messages(chat: FakeChat) -> list[tuple[str, object]]:
    """Role and content of the newest request's messages."""
    return [(message["role"], message["content"]) for message in chat.requests[-1]["messages"]]
