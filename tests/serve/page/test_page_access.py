"""The page for everyone: dark and light, phone, keyboard, screen reader, less motion."""

import pytest
from playwright.sync_api import Page, expect
from support.fake_chat_server import FakeChat
from support.page_driver import ask, ended, last_messages

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
ON_A_PHONE = pytest.mark.parametrize("context_options", [PHONE], ids=["phone"])


@pytest.mark.parametrize(
    "context_options", [{"color_scheme": "dark"}, {"color_scheme": "light"}], ids=["dark", "light"]
)
def test_the_theme_is_the_system_s_until_it_is_switched(page: Page, context_options: dict[str, str]):
    theme = context_options["color_scheme"]
    other = "light" if theme == "dark" else "dark"
    lightness = "() => parseInt(getComputedStyle(document.body).backgroundColor.slice(4), 10)"
    assert (page.evaluate(lightness) < 128) == (theme == "dark")
    page.get_by_role("button", name=f"Switch to the {other} theme").click()
    assert (page.evaluate(lightness) < 128) == (other == "dark")
    page.reload()
    assert (page.evaluate(lightness) < 128) == (other == "dark")


@pytest.mark.parametrize("context_options", [{"reduced_motion": "reduce"}])
def test_nothing_moves_for_those_who_asked_for_that(page: Page, chat: FakeChat):
    ask(page, "slow", wait=False)
    expect(page.locator(".answer")).to_contain_text("word1 ")
    assert page.evaluate("document.getAnimations().length") == 0


@ON_A_PHONE
def test_a_phone(page: Page, chat: FakeChat):
    ask(page, "What is paged attention?")
    widest = "() => document.documentElement.scrollWidth"
    assert page.evaluate(widest) == 390
    page.get_by_role("button", name="Panel").click()
    expect(page.get_by_role("tab", name="Live")).to_be_focused()
    assert page.locator("#chat").evaluate("chat => chat.inert")
    for tab in ("Live", "Settings", "Tools"):
        page.get_by_role("tab", name=tab).tap()
        assert page.evaluate(widest) == 390
    page.get_by_role("button", name="Done").tap()
    expect(page.locator("#panel")).to_be_hidden()
    small = "fields => fields.filter((field) => parseFloat(getComputedStyle(field).fontSize) < 16).length"
    assert page.locator("textarea, input:not([type=range], [type=checkbox]), select").evaluate_all(small) == 0
    ask(page, "echo again")
    assert len(chat.requests) == 2


@ON_A_PHONE
def test_escape_closes_the_panel_before_it_stops_the_answer(page: Page, chat: FakeChat):
    ask(page, "slow", wait=False)
    page.get_by_role("button", name="Panel").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Panel")).to_be_focused()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    ended(page)


def test_keyboard_only(page: Page, chat: FakeChat):
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("echo first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    page.keyboard.press("Enter")
    ended(page)
    assert last_messages(chat) == [("user", "echo first\nsecond")]
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("tab", name="Live")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Settings")).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Settings")).to_be_visible()
    page.keyboard.press("End")
    expect(page.get_by_role("tabpanel", name="Tools")).to_be_visible()
    outline = page.get_by_role("tab", name="Tools").evaluate("tab => getComputedStyle(tab).outlineStyle")
    assert outline == "solid"


def test_every_control_has_a_name(page: Page):
    ask(page, "What is paged attention?")
    for tab in ("Live", "Settings", "Tools"):
        page.get_by_role("tab", name=tab).click()
        tree = page.locator("body").aria_snapshot()
        controls = [
            line.strip()
            for line in tree.splitlines()
            if line.strip().startswith(("- button", "- textbox", "- combobox"))
        ]
        assert len(controls) > 5
        assert [line for line in controls if '"' not in line] == []
