"""Merging of deltas."""

from serve.tool_parsers.deltas import CallArguments, CallEnd, CallStart, TextDelta, merge


def test_neighbours_of_one_kind_and_call_are_joined():
    deltas = [
        TextDelta("a"), TextDelta("b"), CallStart(0, "i", "f"), CallArguments(0, "{"), CallArguments(0, "}"),
        CallEnd(0), CallStart(1, "j", "f"), CallArguments(1, "{}"), CallArguments(2, "{}"), TextDelta("c"),
    ]  # fmt: skip
    assert merge(deltas) == [
        TextDelta("ab"), CallStart(0, "i", "f"), CallArguments(0, "{}"), CallEnd(0),
        CallStart(1, "j", "f"), CallArguments(1, "{}"), CallArguments(2, "{}"), TextDelta("c"),
    ]  # fmt: skip
    assert merge([]) == []
