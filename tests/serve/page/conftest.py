"""A headless Chromium, and the page in it, served by a fake server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, sync_playwright
from support.fake_chat_server import FakeChat, serving

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Problems:
    """What the browser complained about: errors of scripts, breaches of the content policy, files that are missing."""

    def __init__(self, page: Page):
        self.found: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.found.append(str(error)))
        page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        # The browser logs every answer that is an error; the page shows those itself, and tests ask for some.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.found.append(message.text)

    def _response(self, response: Response) -> None:
        if response.status == 404:
            self.found.append(f"404: {response.url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one file's tests."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser: {CHROMIUM} is missing (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def chat() -> FakeChat:
    """What the fake server does; change it before the page is opened."""
    return FakeChat()


@pytest.fixture
def url(chat: FakeChat) -> Iterator[str]:
    """Address of the fake server."""
    with serving(chat) as address:
        yield address


@pytest.fixture
def context_options() -> dict[str, object]:
    """Options of the browser's context; parametrize it for other screens and themes."""
    return {"viewport": {"width": 1360, "height": 860}}


@pytest.fixture
def page(browser: Browser, url: str, context_options: dict[str, object]) -> Iterator[Page]:
    """The page, loaded. At the end of the test the browser must have had nothing to complain about."""
    context = browser.new_context(**context_options)
    page = context.new_page()
    page.set_default_timeout(15_000)
    problems = Problems(page)
    page.goto(url)
    page.get_by_role("status").filter(has_text="connecting").wait_for(state="detached")
    yield page
    context.close()
    assert problems.found == []
