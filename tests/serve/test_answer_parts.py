from serve.answer_parts import AnswerParts, PartClosed, PartGrown, PartOpened
from serve.reasoning.think import ReasoningDelta
from serve.tool_parsers.deltas import CallArguments, CallEnd, CallStart, TextDelta


def call(index, text, *, ends=True):
    start = [CallStart(index, f"call_{index}", "add"), CallArguments(index, text)]
    return [*start, CallEnd(index)] if ends else start


def parted(deltas, cut=False):
    parts = AnswerParts()
    events = [event for delta in deltas for event in parts.feed([delta])] + parts.finish(cut)
    return parts.parts, events


def test_one_part_is_open_at_a_time():
    deltas = [
        ReasoningDelta("Hm"),
        ReasoningDelta("."),
        TextDelta("So"),
        *call(0, "{}"),
        *call(1, "{}"),
        TextDelta("!"),
    ]
    parts, events = parted(deltas)
    assert [(part.kind, part.text) for part in parts] == [
        ("reasoning", "Hm."),
        ("text", "So"),
        ("call", "{}"),
        ("call", "{}"),
        ("text", "!"),
    ]
    assert all(part.complete for part in parts)
    assert [part.index for part in parts] == [0, 1, 2, 3, 4]
    open_parts = []
    for event in events:
        if isinstance(event, PartOpened):
            assert not open_parts
            open_parts.append(event.part)
        elif isinstance(event, PartGrown):
            assert open_parts == [event.part]
        else:
            assert isinstance(event, PartClosed)
            assert open_parts.pop() is event.part
    assert not open_parts


def test_white_space_alone_is_no_part():
    parts, _ = parted(
        [TextDelta("\n"), *call(0, "{}"), TextDelta(" "), TextDelta("\n"), *call(1, "{}"), TextDelta(" ")]
    )
    assert [part.kind for part in parts] == ["call", "call"]


def test_white_space_before_text_belongs_to_it():
    parts, _ = parted([*call(0, "{}"), TextDelta("\n"), TextDelta(" "), TextDelta("a"), TextDelta(" ")])
    assert parts[1].text == "\n a "


def test_a_call_without_its_end_is_never_complete():
    parts, _ = parted([*call(0, '{"a"', ends=False), TextDelta("x"), *call(1, "{", ends=False)])
    assert [part.complete for part in parts] == [False, True, False]


def test_what_is_cut_is_not_complete():
    parts, _ = parted([ReasoningDelta("Hm"), TextDelta("So")], cut=True)
    assert [part.complete for part in parts] == [True, False]
