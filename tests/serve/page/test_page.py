"""The page in a browser: what a person does with it."""

import pytest
from playwright.sync_api import Page, expect
from support.fake_chat_server import FakeChat
from support.page_driver import ask, ended, last_messages


def test_an_answer_is_set_as_markdown(page: Page, chat: FakeChat):
    ask(page, "What is paged attention?")
    answer = page.locator(".answer")
    expect(answer.get_by_role("heading", name="Paged attention, briefly")).to_be_visible()
    expect(answer.locator("strong")).to_have_text("fixed pages")
    expect(answer.locator("tbody tr")).to_have_count(3)
    expect(answer.locator("ol > li")).to_have_count(2)
    expect(answer.locator("ol ul > li")).to_have_count(2)
    expect(answer.locator("pre")).to_contain_text("def page_of(position: int")
    expect(answer.locator(".code-keyword").first).to_have_text("def")
    expect(answer.locator("blockquote")).to_contain_text("Nothing is moved")
    link = answer.get_by_role("link", name="the paper")
    assert link.get_attribute("href") == "https://arxiv.org/abs/2309.06180"
    assert link.get_attribute("rel") == "noopener noreferrer"
    assert last_messages(chat) == [("user", "What is paged attention?")]
    assert chat.requests[-1]["model"] == "demo/SmolLM2-135M-Instruct"
    assert chat.requests[-1]["stream"] is True


def test_the_answer_is_told_to_screen_readers_by_blocks(page: Page):
    ask(page, "think about it")
    spoken = page.get_by_role("log", name="Answer")
    expect(spoken).to_contain_text("A considered answer.")
    expect(spoken).to_contain_text("Answer ended.")
    assert spoken.get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("by", ["escape", "button"])
def test_stop(page: Page, chat: FakeChat, by: str):
    ask(page, "slow", wait=False)
    expect(page.locator(".answer")).to_contain_text("word3 ")
    expect(page.locator(".turn.running")).to_have_count(1)
    if by == "escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    ended(page)
    expect(page.locator(".figures")).to_contain_text("stopped")
    assert chat.cancelled.wait(15)
    ask(page, "echo this")
    assert last_messages(chat)[1][1].startswith("word0 word1 ")  # what was said before the stop counts


def test_regenerate_sends_the_same_question(page: Page, chat: FakeChat):
    ask(page, "echo one")
    ask(page, "echo two")
    page.get_by_role("button", name="Regenerate").last.click()
    expect(page.locator(".turn.assistant .figures").last).to_contain_text("tokens")
    ended(page)
    assert len(chat.requests) == 3
    assert chat.requests[2]["messages"] == chat.requests[1]["messages"]
    expect(page.locator(".turn")).to_have_count(4)


def test_an_edited_question_replaces_what_came_of_it(page: Page, chat: FakeChat):
    ask(page, "echo one")
    ask(page, "echo two")
    page.locator(".turn.user").first.hover()
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit your message").fill("echo three")
    page.keyboard.press("Enter")
    ended(page)
    assert last_messages(chat) == [("user", "echo three")]
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".answer")).to_have_text("echo three")


def test_clear_and_undo(page: Page, chat: FakeChat):
    ask(page, "echo one")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".answer")).to_have_text("echo one")
    page.get_by_role("button", name="Clear").click()
    ask(page, "echo two")
    assert last_messages(chat) == [("user", "echo two")]


def test_the_conversation_outlives_a_reload(page: Page):
    ask(page, "What is paged attention?")
    before = page.locator(".answer").inner_html()
    page.reload()
    expect(page.locator(".answer blockquote")).to_be_visible()
    assert page.locator(".answer").inner_html() == before


def test_model_text_never_becomes_markup(page: Page):
    ask(page, "hostile")
    answer = page.locator(".answer")
    expect(answer).to_contain_text(
        'Hello <script>window.hacked = 1</script> and <img src=x onerror="window.hacked = 2">'
    )
    expect(answer).to_contain_text("<script>window.hacked=8</script>")
    expect(answer.locator("th")).to_have_text("<b>head</b>")
    expect(answer.locator("pre")).to_have_text("<script>window.hacked = 6</script>")
    assert answer.locator("script, img, svg, iframe, style, b").count() == 0
    links = answer.locator("a").evaluate_all("links => links.map((link) => link.href)")
    assert links == ["https://example.com/x.png", "https://example.com/ok%22onmouseover=%22window.hacked=7"]
    assert answer.locator("[onmouseover], [onload], [onerror], [style]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_what_a_person_writes_never_becomes_markup(page: Page):
    text = "echo <img src=x onerror='window.hacked=1'> **bold**"
    ask(page, text)
    expect(page.locator(".question")).to_have_text(text)
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_refused_request_shows_the_server_s_reason(page: Page, chat: FakeChat):
    ask(page, "too hot")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("400 · invalid_request_error")
    expect(alert).to_contain_text("temperature=9 must be between 0 and 2")
    expect(alert.locator("code")).to_have_text("temperature")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_an_error_in_the_stream_keeps_what_was_said(page: Page):
    ask(page, "echo then break")
    expect(page.locator(".answer")).to_have_text("echo then break")
    expect(page.get_by_role("alert")).to_contain_text("the engine failed")


def test_the_api_key_is_asked_for_and_kept_by_the_tab_only(page: Page, chat: FakeChat):
    chat.key = "sesame"
    ask(page, "echo open")
    page.get_by_role("button", name="Enter the API key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("sesame")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_text("echo open")
    assert "sesame" in page.evaluate("JSON.stringify(sessionStorage)")
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


def test_only_what_was_set_is_sent(page: Page, chat: FakeChat):
    ask(page, "echo one")
    plain = {"model", "messages", "stream", "stream_options"}
    assert set(chat.requests[-1]) == plain
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    values = {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_tokens": 9,
        "seed": 7,
    }
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))
    ask(page, "echo two")
    assert {key: value for key, value in chat.requests[-1].items() if key not in plain} == values
    assert last_messages(chat)[0] == ("system", "Be brief.")
    page.get_by_role("button", name="Back to auto").click()
    ask(page, "echo three")
    assert set(chat.requests[-1]) == plain


def test_reasoning_is_folded_away(page: Page, chat: FakeChat):
    ask(page, "think about it")
    thoughts = page.locator("details.thinking div")
    expect(thoughts).to_be_hidden()
    page.get_by_text("Thought", exact=True).click()
    expect(thoughts).to_have_text("Let me consider.")
    expect(page.locator(".answer")).to_have_text("A considered answer.")
    ask(page, "echo next")
    assert last_messages(chat)[1] == ("assistant", "A considered answer.")


def test_tools(page: Page, chat: FakeChat):
    page.get_by_role("tab", name="Tools").click()
    page.get_by_role("button", name="Example").click()
    expect(page.locator("#tools-state")).to_have_text("Sent with each message: add, mul")
    page.get_by_label("Tool choice").select_option("required")
    ask(page, "Compute (3+5)*2")
    sent = chat.requests[-1]
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["add", "mul"]
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("required", True)
    expect(page.locator("#call-log code")).to_have_text(['add({"a": 3, "b": 5})', 'mul({"a": 8, "b": 2})'])
    expect(page.get_by_label("Result of add")).to_be_focused()

    ask(page, "and now?")  # not before the results are there
    assert len(chat.requests) == 1
    expect(page.get_by_text("The model waits for its tool's result.")).to_be_visible()

    page.get_by_label("Result of add").fill("8")
    page.get_by_label("Result of mul").fill("16")
    page.get_by_role("button", name="Send results").click()
    expect(page.locator(".answer").last).to_have_text("The result is 16.")
    ended(page)
    call, *results = chat.requests[-1]["messages"][1:]
    assert call["content"] is None
    assert [made["function"]["arguments"] for made in call["tool_calls"]] == ['{"a": 3, "b": 5}', '{"a": 8, "b": 2}']
    assert results == [
        {"role": "tool", "tool_call_id": "call_0", "content": "8"},
        {"role": "tool", "tool_call_id": "call_1", "content": "16"},
    ]


def test_a_schema_becomes_a_tool_that_can_be_required(page: Page, chat: FakeChat):
    page.get_by_role("tab", name="Tools").click()
    page.get_by_label("Tools", exact=True).last.fill(
        '{"title": "City", "type": "object", "properties": {"name": {"type": "string"}}}'
    )
    page.get_by_label("Tool choice").select_option("City")
    page.get_by_label("Several calls at once").uncheck()
    ask(page, "Where?")
    sent = chat.requests[-1]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "City"}}
    assert sent["tools"][0]["function"]["parameters"]["properties"] == {"name": {"type": "string"}}
    assert sent["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "This is not JSON yet"),
        ("[3]", "Tool 1 is not an object"),
        ('[{"name": "a b"}]', "may hold letters"),
        ('[{"name": "a"}, {"name": "a"}]', "Two tools are named"),
        ("{}", "neither a “name” nor “properties”"),
    ],
)
def test_tools_that_are_none_are_not_sent(page: Page, chat: FakeChat, text: str, message: str):
    page.get_by_role("tab", name="Tools").click()
    field = page.get_by_label("Tools", exact=True).last
    field.fill(text)
    expect(page.locator("#tools-state")).to_contain_text(message)
    assert field.get_attribute("aria-invalid") == "true"
    ask(page, "echo none")
    assert "tools" not in chat.requests[-1]


def test_live_figures(page: Page):
    expect(page.locator("#cache-figure output")).to_have_text("37")
    expect(page.locator("#cache-figure .used")).to_have_count(53)  # of 144 squares: 412 of 1120 pages, rounded up
    expect(page.locator("#load-figure output")).to_have_text("3 running, 1 waiting")
    expect(page.locator("#fact-prefix")).to_have_text("62 %")
    ask(page, "What is paged attention?")
    expect(page.locator("#ttft-figure rect")).to_have_count(1)
    bar, plot = (page.locator(f"#ttft-figure {part}").bounding_box() for part in ("rect", "svg"))
    assert bar is not None
    assert plot is not None
    assert bar["y"] + bar["height"] == pytest.approx(plot["y"] + plot["height"], abs=0.5)
    expect(page.locator("#ttft-figure output")).to_have_text(
        page.locator(".figures").inner_text().rsplit("first token ")[1]
    )


def test_the_server_is_asked_only_while_the_figures_are_seen(page: Page, chat: FakeChat, url: str):
    page.clock.install()
    page.goto(url)
    expect(page.locator("#cache-figure output")).to_have_text("37")
    asked = chat.metrics_asked
    with page.expect_response("**/metrics"):
        page.clock.run_for(2100)
    assert chat.metrics_asked == asked + 1
    page.get_by_role("tab", name="Settings").click()
    with page.expect_response("**/health"):
        page.clock.run_for(11_000)
    assert chat.metrics_asked == asked + 1


def test_the_status_follows_the_server(page: Page, chat: FakeChat, url: str):
    chat.health = "compiling 7/14"
    page.clock.install()
    page.goto(url)
    status = page.locator("#status")
    expect(status).to_contain_text("compiling 7/14")
    expect(status.locator(".used")).to_have_count(7)
    expect(status.locator(".free")).to_have_count(7)
    chat.health = "ready"
    page.clock.run_for(2100)
    expect(status).to_have_text("ready")
    expect(status.locator("rect")).to_have_count(0)
    expect(page.locator("#model-name")).to_have_text("SmolLM2-135M-Instruct")
