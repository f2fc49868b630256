"""Thinking parted from the answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.reasoning.think import ReasoningDelta, ReasoningParser, prompt_opens_thinking, thinks
from serve.tool_parsers.deltas import TextDelta


def parted(pieces: list[str], starts_inside: bool) -> tuple[str, str]:
    """Thinking and answer; the thinking comes first."""
    parser = ReasoningParser(starts_inside)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    kinds = [type(delta) for delta in deltas]
    assert kinds == sorted(kinds, key=lambda kind: kind is TextDelta)
    assert all(delta.text for delta in deltas)
    thinking = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    return thinking, "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


@pytest.mark.parametrize(
    ("text", "starts_inside", "expected"),
    [
        ("", False, ("", "")),
        ("Hi", False, ("", "Hi")),
        ("\n Hi <think>no</think>", False, ("", "\n Hi <think>no</think>")),
        ("  \n", False, ("", "  \n")),
        ("<thin", False, ("", "<thin")),
        ("<think>\na\n\nb < c </thin\n</think>\n\nHi\n", False, ("a\n\nb < c </thin", "Hi\n")),
        ("\n<think>a</think>b", False, ("a", "b")),
        ("<think>\n\n</think>\n\nHi", False, ("", "Hi")),
        ("<think>a\n", False, ("a\n", "")),
        ("<think>a</thi", False, ("a</thi", "")),
        ("<think>a</think>\n<think>b</think>", False, ("a", "<think>b</think>")),
        ("a</think> b", True, ("a", " b")),
        ("\na 你好\n</think>\nb", True, ("a 你好", "b")),
        (" a</think>b", True, (" a", "b")),
        ("<think>\na</think>b", True, ("a", "b")),
        ("</think>b", True, ("", "b")),
        ("a", True, ("a", "")),
    ],
)
def test_parts_however_the_text_is_cut(text, starts_inside, expected):
    assert parted([text], starts_inside) == expected
    assert parted(list(text), starts_inside) == expected
    for at in range(1, len(text)):
        assert parted([text[:at], text[at:]], starts_inside) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_nothing_is_lost_but_newlines_at_the_border(thinking, answer):
    if "</think>" in thinking:
        return
    text = f"<think>{thinking}</think>{answer}"
    assert parted([text], False) == parted(list(text), False) == (thinking.strip("\n"), answer.lstrip("\n"))


def test_streams_and_says_where_it_is():
    parser = ReasoningParser()
    assert (parser.decided, parser.inside) == (False, False)
    assert parser.feed("<think>") == []
    assert (parser.decided, parser.inside) == (True, True)
    assert parser.feed("\nso") == [ReasoningDelta("so")]
    assert parser.feed("\n") == []
    assert parser.feed("on") == [ReasoningDelta("\non")]
    assert parser.feed("</think>") == []
    assert parser.inside is False
    assert parser.feed("\n\nHi") == [TextDelta("Hi")]
    assert parser.finish() == []
    with pytest.raises(RuntimeError, match="after finish"):
        parser.feed("x")
    plain = ReasoningParser()
    plain.feed("H")
    assert (plain.decided, plain.inside) == (True, False)


def test_prompts_and_templates():
    assert prompt_opens_thinking("<|im_start|>assistant\n<think>\n")
    assert not prompt_opens_thinking("<think>\n\n</think>\n\n")
    assert not prompt_opens_thinking("Hello")
    assert thinks("{{ content.split('</think>') }}")
    assert not thinks(None)
