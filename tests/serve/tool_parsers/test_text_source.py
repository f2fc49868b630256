"""Reading primitives: how much is held back."""

from serve.tool_parsers.text_source import TextSource


def test_until_holds_back_what_may_become_a_tag_and_no_more():
    source, out = TextSource(), []
    reading = source.until(("<tag>", "##"), out.append)
    for piece, expected in [("a<", "a"), ("b", "<b"), ("<t#", "<t"), ("x<ta", "#x"), ("<ta", "<ta"), ("gy", "<tagy")]:
        out.clear()
        source.buffer += piece
        next(reading)
        assert "".join(out) == expected
    source.buffer += "<tag>z"
    assert next(reading, "over") == "over"
    assert source.buffer == "<tag>z"


def test_until_finds_a_short_tag_inside_the_beginning_of_a_longer_one_at_the_end():
    source, out = TextSource(), []
    reading = source.until(("<a<b>c", "<b>"), out.append)
    source.buffer = "<a<b>"
    next(reading)
    assert out == []
    source.ended = True
    assert next(reading, "over") == "over"
    assert (out, source.buffer) == (["<a"], "<b>")


def test_rewind_puts_back_what_was_taken_since_the_mark():
    source = TextSource()
    source.buffer = "abcdef"
    source.take(2)
    source.mark()
    assert source.take(1) + source.take(2) == source.since_mark() == "cde"
    source.rewind()
    assert (source.buffer, source.since_mark()) == ("cdef", "")
