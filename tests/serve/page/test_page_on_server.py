"""The page on the real server around a fake engine: both sides mean the same by what they send."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.page_driver import ask, ended

TESTS = Path(__file__).parents[2]


@pytest.fixture
def url() -> Iterator[str]:
    """Address of a server process; stands in for the fake chat server's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "support.run_fake_server", str(port), "0"]
    with subprocess.Popen(
        command, cwd=TESTS, env={"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline()  # the line that says it is up
        yield f"http://127.0.0.1:{port}/"
        server.terminate()
        server.stdout.read()


def test_ask_and_measure(page):
    expect(page.locator("#status")).to_have_text("ready")
    expect(page.locator("#model-name")).not_to_be_empty()
    ask(page, "Hi")
    expect(page.locator(".answer")).to_contain_text("tick tick")
    expect(page.locator(".figures")).to_contain_text("tokens")
    expect(page.locator("#fact-tokens")).not_to_have_text("0")
    expect(page.locator("#cache-figure .hint")).to_contain_text("pages in use")


def test_the_server_s_own_error_is_shown(page):
    page.get_by_role("tab", name="Settings").click()
    page.locator("#temperature").fill("-1")
    ask(page, "Hi")
    expect(page.get_by_role("alert")).to_contain_text("400")
    expect(page.get_by_role("alert").locator("code")).to_have_text("temperature")
    page.get_by_role("button", name="Back to auto").click()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_contain_text("tick")
    ended(page)
