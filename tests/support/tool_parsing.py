"""Runs tool parsers in every way of cutting the text, and writes their deltas in a short form."""

import itertools
import json
from collections.abc import Iterable, Iterator

from serve.tool_parsers.deltas import CallArguments, CallEnd, CallStart, Delta, TextDelta, merge
from serve.tool_parsers.registry import make_parser

type Item = str | tuple[str, ...]


def function_tool(name: str, properties: dict | None = None) -> dict:
    """A tool as chat completions has it."""
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties or {}}},
    }


def run(name: str, pieces: Iterable[str], tools: Iterable[dict] = ()) -> list[Delta]:
    """All deltas of a fresh parser that is fed ``pieces``; ids are id0, id1, ..."""
    numbers = itertools.count()
    parser = make_parser(name, tools, lambda: f"id{next(numbers)}")
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    return deltas + parser.finish()


def splits(text: str) -> Iterator[list[str]]:
    """The text one character at a time, and cut in two at every point."""
    yield list(text)
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]


def short(deltas: Iterable[Delta]) -> list[Item]:
    """Text as strings, calls as (name, arguments) or, if they never ended, (name, arguments, "cut").

    Checks on the way what every client relies on: numbering, ids, order, and valid JSON in calls that ended.
    """
    items: list[Item] = []
    calls: list[list[str]] = []
    for delta in deltas:
        match delta:
            case TextDelta(text):
                assert text
                items.append(text)
            case CallStart(index, call_id, name):
                assert (index, call_id) == (len(calls), f"id{len(calls)}")
                calls.append([name, "", "cut"])
                items.append(("call", str(index)))
            case CallArguments(index, fragment):
                assert fragment
                assert index == len(calls) - 1, "arguments of a call that is not the last"
                assert len(calls[index]) == 3, "arguments after the end"
                calls[index][1] += fragment
            case CallEnd(index):
                assert calls[index].pop() == "cut"
                assert isinstance(json.loads(calls[index][1]), dict)
    return [item if isinstance(item, str) else tuple(calls[int(item[1])]) for item in items]


def check(name: str, text: str, expected: list[Item], tools: Iterable[dict] = ()) -> None:
    """Asserts what the parser makes of ``text``, fed whole and cut in every way."""
    whole = merge(run(name, [text], tools))
    assert short(whole) == expected, short(whole)
    for pieces in splits(text):
        assert merge(run(name, pieces, tools)) == whole, pieces
