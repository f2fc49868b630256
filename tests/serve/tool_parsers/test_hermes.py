"""The Hermes format, and what all JSON formats share (order of members, double encoding, repair)."""

import pytest
from support.tool_parsing import check

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
DONE = ("f", '{"a": 1}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b <tool> </tool_call> <tool_cal", ["a < b <tool> </tool_call> <tool_cal"]),
        (" \n ", [" \n "]),
        ("\n\nHi", ["\n\nHi"]),
        (CALL, [("f", '{"a": 1}')]),
        (f"\n\n{CALL}\n", [("f", '{"a": 1}')]),
        (f"Let me see.\n{CALL}\nSeen.", ["Let me see.\n", ("f", '{"a": 1}'), "\nSeen."]),
        (f"{CALL}\n{CALL}{CALL}", [("f", '{"a": 1}')] * 3),
        (f"{CALL} and {CALL}", [("f", '{"a": 1}'), " and ", ("f", '{"a": 1}')]),
        # no closing tag between calls
        ('<tool_call>{"name": "f"}\n<tool_call>{"name": "g"}</tool_call>', [("f", "{}"), ("g", "{}")]),
        # the name may come last, and others may be between
        ('<tool_call>{"arguments": {"a": [{"b": "}"}]}, "name": "f"}</tool_call>', [("f", '{"a": [{"b": "}"}]}')]),
        ('<tool_call>{"id": 7, "name": "f", "x": [{}], "arguments": {}, "y": null}</tool_call>', [("f", "{}")]),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', [("f", "{}")]),
        # double-encoded arguments are decoded once
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\\\u00fc\\"}"}', [("f", '{"a": "\\u00fc"}')]),
        # raw control characters in strings are repaired
        ('<tool_call>{"name": "f", "arguments": {"a": "x\ny\t"}}</tool_call>', [("f", '{"a": "x\\ny\\t"}')]),
        ('<tool_call>{"name": "\\u00fcber.f-1", "arguments": {}}</tool_call>', [("über.f-1", "{}")]),
        # the last brace is missing, or there is one too many
        ('<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>', [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {}}}</tool_call>', [("f", "{}"), "}</tool_call>"]),
        ('<tool_call>{"name": "f", "arguments": {}, oops', [("f", "{}"), ", oops"]),
        # cut off
        ("Hi <tool_call>", ["Hi <tool_call>"]),
        ("\n<tool_call>\n{", ["\n<tool_call>\n{"]),
        ('<tool_call>{"name": "f", "arguments"', ['<tool_call>{"name": "f", "arguments"']),
        ('<tool_call>{"name": "f", "arguments": "{', ['<tool_call>{"name": "f", "arguments": "{']),
        ('<tool_call>{"arguments": {"a": 1}', ['<tool_call>{"arguments": {"a": 1}']),
        ('<tool_call>{"name": "f", "arguments": {', [("f", "{", "cut")]),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\', [("f", '{"a": "\\', "cut")]),
        ('<tool_call>{"name": "f", "arguments": {}', [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {}}</tool', [("f", "{}"), "</tool"]),
        # malformed
        ("<tool_call> oops </tool_call>", ["<tool_call> oops </tool_call>"]),
        (f"<tool_call> {CALL}", ["<tool_call> ", ("f", '{"a": 1}')]),
        (f"<tool_call>{{}}\n{CALL}", ["<tool_call>{}\n", ("f", '{"a": 1}')]),
        ('<tool_call>{"name": 3}</tool_call>', ['<tool_call>{"name": 3}</tool_call>']),
        ('<tool_call>{"name": ""}</tool_call>', ['<tool_call>{"name": ""}</tool_call>']),
        ('<tool_call>{"name": "f", "arguments": [1]}', ['<tool_call>{"name": "f", "arguments": [1]}']),
        ('<tool_call>{"name": "f", "arguments": "oops"}', ['<tool_call>{"name": "f", "arguments": "oops"}']),
        ('<tool_call>{"name": "f" "arguments": {}}', ['<tool_call>{"name": "f" "arguments": {}}']),
        ("<tool_call>{'name': 'f'}</tool_call>", ["<tool_call>{'name': 'f'}</tool_call>"]),
        # broken after the call was started: the rest of it goes where the beginning went
        (f'<tool_call>{{"name": "f", "arguments": {{"a": 1</tool_call>{CALL}', [("f", '{"a": 1', "cut"), DONE]),
        (f'<tool_call>{{"name": "f", "arguments": {{"a": no}}}}{CALL}', [("f", '{"a": no}}', "cut"), DONE]),
    ],
)  # fmt: skip
def test_hermes(text, expected):
    check("hermes", text, expected)
