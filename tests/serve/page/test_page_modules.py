"""The page's modules one by one, inside the browser."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page
from support.fake_chat_server import HOSTILE, MARKDOWN, FakeChat, serving

MARKS = [
    "# ",
    "- ",
    "1. ",
    "> ",
    "```",
    "```py\n",
    "|",
    "|-|-|\n",
    "**",
    "*",
    "_",
    "`",
    "~~",
    "[",
    "](",
    ")",
    "https://a.b",
    "\\",
]
PIECES = st.sampled_from([*MARKS, "\n", "\n\n", "  ", "word", " ", "3", "<b>", "&lt;", "---"])
DOCUMENTS = st.lists(PIECES, max_size=40).map("".join)
LANGUAGES = ["python", "js", "bash", "sql", "html", "yaml", "text", "constructor", ""]


@pytest.fixture(scope="module")
def tab(browser: Browser):
    """An open page; tests only use its modules."""
    with serving(FakeChat()) as url:
        page = browser.new_page()
        page.goto(url)
        yield page
        page.close()


def render(tab: Page, pieces: list[str]) -> str:
    """The HTML that a streamed text ends as."""
    return tab.evaluate(
        """async (pieces) => {
          const { MarkdownStream } = await import("/page/markdown.js");
          const node = document.createElement("div");
          const stream = new MarkdownStream(node);
          for (const piece of pieces) stream.append(piece);
          stream.finish();
          return node.innerHTML;
        }""",
        pieces,
    )


def inline(tab: Page, text: str) -> str:
    """The HTML of a text without blocks, its paragraph taken off."""
    return render(tab, [text]).removeprefix("<p>").removesuffix("</p>")


@settings(max_examples=150, deadline=None)
@given(text=DOCUMENTS, seed=st.integers(0, 99))
def test_however_it_is_cut_the_result_is_the_same(tab: Page, text: str, seed: int):
    whole = render(tab, [text])
    assert render(tab, list(text)) == whole
    cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=4))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert render(tab, pieces) == whole


@pytest.mark.parametrize("text", [MARKDOWN, HOSTILE, MARKDOWN.replace("\n", "\r\n")])
def test_documents_may_be_cut_anywhere(tab: Page, text: str):
    assert render(tab, list(text)) == render(tab, [text])


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a *b* **c** _d_ __e__ ~~f~~", "a <em>b</em> <strong>c</strong> <em>d</em> <strong>e</strong> <del>f</del>"),
        ("***both***", "<strong><em>both</em></strong>"),
        ("2 * 3 * 4, a_b_c and 5*", "2 * 3 * 4, a_b_c and 5*"),
        ("**open", "**open"),
        ("**a *b** c*", "<strong>a *b</strong> c*"),
        ("`a * b` ``c`d``", "<code>a * b</code> <code>c`d</code>"),
        ("`open", "`open"),
        (r"\*no\* \`no\`", "*no* `no`"),
        ("a\nb  \nc", "a<br>b<br>c"),
        ("&amp;lt; &lt;b&gt;", "&amp;lt; &lt;b&gt;"),
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"),
    ],
)
def test_inline(tab: Page, text: str, html: str):
    assert inline(tab, text) == html


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("[a](https://a.b/c_(d))", ["https://a.b/c_(d)"]),
        ("see https://a.b/c, or (https://d.e/).", ["https://a.b/c", "https://d.e/"]),
        ("<http://a.b>", ["http://a.b/"]),
        ("![x](https://a.b/i.png)", ["https://a.b/i.png"]),
        ("[a](javascript:alert) [b](JaVaScRiPt:x) [c](//a.b) [d](/x) [e](data:text/html,x) [f](vbscript:x)", []),
        ("[a](https://)", []),
    ],
)
def test_only_http_addresses_become_links(tab: Page, text: str, addresses: list[str]):
    found = tab.evaluate(
        """async (text) => {
          const { renderMarkdown } = await import("/page/markdown.js");
          const node = document.createElement("div");
          renderMarkdown(node, text);
          return [...node.querySelectorAll("a")].map((link) => [link.href, link.rel, link.target]);
        }""",
        text,
    )
    assert found == [[address, "noopener noreferrer", "_blank"] for address in addresses]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("- a\n- b\n\n  more\n- c", "<ul><li>a</li><li>b<p>more</p></li><li>c</li></ul>"),
        ("#\n## b ##\n#c", '<h4 class="level-2">b</h4><p>#c</p>'),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- a\n1. b", "<ul><li>a</li></ul><ol><li>b</li></ol>"),
        ("in\n1984. That year", "<p>in<br>1984. That year</p>"),
        (
            "# a\ntext\n---\n> b\n> > c",
            '<h3 class="level-1">a</h3><p>text</p><hr><blockquote><p>b</p><blockquote><p>c</p></blockquote></blockquote>',
        ),
    ],
)
def test_blocks(tab: Page, text: str, html: str):
    assert render(tab, [text]) == html


def test_a_fence_in_a_list_stays_in_it(tab: Page):
    html = render(tab, ["1. run\n   ```sh\n   ls\n\n   pwd\n   ```\n2. done"])
    assert html.startswith("<ol><li>run<div")
    assert html.count("<li>") == 2
    assert "ls\n\npwd" in html


def test_work_grows_with_the_text_not_with_its_square(tab: Page):
    """Elements made while one long paragraph streams in: twice the text, about twice the elements."""

    def made(words: int) -> int:
        return tab.evaluate(
            """async (words) => {
              const { MarkdownStream } = await import("/page/markdown.js");
              const stream = new MarkdownStream(document.createElement("div"));
              const create = document.createElement;
              let made = 0;
              document.createElement = (tag) => (made++, create.call(document, tag));
              for (let word = 0; word < words; word++) stream.append("*word* ");
              stream.finish();
              document.createElement = create;
              return made;
            }""",
            words,
        )

    small, large = made(4000), made(16000)
    assert large < 5 * small


@pytest.mark.parametrize(
    "text", ["[" * 20000, "*a " * 10000, "x" + "`" * 20000, "> " * 5000, "**" * 10000 + "x", "![](" * 5000, "- " * 3000]
)
def test_nothing_is_lost_of_a_text_made_to_hurt(tab: Page, text: str):
    shown = tab.evaluate(
        """async (text) => {
          const { renderMarkdown } = await import("/page/markdown.js");
          const node = document.createElement("div");
          renderMarkdown(node, text);
          return node.textContent;
        }""",
        text + " end",
    )
    assert shown.rstrip().endswith("end")


@settings(max_examples=100, deadline=None)
@given(
    language=st.sampled_from(LANGUAGES),
    lines=st.lists(
        st.lists(
            st.sampled_from(['"', "'", '"""', "#", "//", "/*", "*/", "def ", "x1", "12.5e3", " ", "\\", "é("])
        ).map("".join)
    ),
)
def test_colouring_keeps_the_text(tab: Page, language: str, lines: list[str]):
    shown = tab.evaluate(
        """async ([language, lines]) => {
          const { Highlighter } = await import("/page/code_highlight.js");
          const highlighter = new Highlighter(language);
          return lines.map((line) => highlighter.line(line).map(([, text]) => text).join(""));
        }""",
        [language, lines],
    )
    assert shown == lines


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_events_may_be_cut_anywhere(tab: Page, newline: str):
    text = newline.join(
        [": hello", "data: one", "", "event: x", "data: two", "data:  lines", "id: 3", "", "data", "", "data: cut off"]
    )
    found: list[Any] = tab.evaluate(
        """async (text) => {
          const { SseParser } = await import("/page/sse_parser.js");
          const cuts = [...text].map((_, at) => [text.slice(0, at), text.slice(at)]).concat([[...text]]);
          return cuts.map((pieces) => {
            const parser = new SseParser();
            return pieces.flatMap((piece) => parser.feed(piece));
          });
        }""",
        text,
    )
    assert len(found) == len(text) + 1
    assert all(events == ["one", "two\n lines"] for events in found)


def test_prometheus_text(tab: Page):
    text = '# HELP a b\na 1\nb_total{x="1 }"} 2 1700000000\nb_total{x="2"} 3e1\nc +Inf\nd NaN\nnonsense\n'
    found = tab.evaluate(
        """async (text) => {
          const { parsePrometheus } = await import("/page/prometheus.js");
          return [...parsePrometheus(text)].map(([name, value]) => [name, String(value)]);
        }""",
        text,
    )
    assert found == [["a", "1"], ["b_total", "32"], ["c", "Infinity"]]


@pytest.mark.parametrize(
    ("body", "health"),
    [
        ('{"status": "ready"}', ["ready", None, None]),
        ('{"status": "compiling 7/14"}', ["compiling", 7, 14]),
        ('{"status": "loading 40 %"}', ["loading", 40, 100]),
        ('{"status": "dead"}', ["dead", None, None]),
    ],
)
def test_health(tab: Page, body: str, health: list[Any]):
    found = tab.evaluate(
        """async (body) => {
          const { phase, done, total } = (await import("/page/health.js")).parseHealth(body);
          return [phase, done, total];
        }""",
        body,
    )
    assert found == health
