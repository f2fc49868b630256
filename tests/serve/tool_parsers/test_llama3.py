"""The Llama 3 format: nothing but JSON says that it is a call."""

import pytest
from support.tool_parsing import check, run

from serve.tool_parsers.deltas import TextDelta
from serve.tool_parsers.registry import make_parser

CALL = '{"name": "f", "parameters": {"a": {"b": "}"}}}'
DONE = ("f", '{"a": {"b": "}"}}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, [DONE]),
        (f"\n {CALL}\n", [DONE]),
        (f"<|python_tag|>{CALL}", [DONE]),
        (f"I call <|python_tag|> {CALL}", ["I call ", DONE]),
        (f"{CALL}; {CALL}", [DONE, DONE]),
        (f"{CALL}\n{CALL};", [DONE, DONE]),
        (f"<|python_tag|>{CALL}; {CALL} ; bye", [DONE, DONE, " ; bye"]),
        ('{"type": "function", "name": "f", "parameters": {"ü": "x\\"y"}}', [("f", '{"ü": "x\\"y"}')]),
        ('{"name": "f", "parameters": {}}', [("f", "{}")]),
        ('<|python_tag|>{"name": "f"}', [("f", "{}")]),
        # bare JSON that is no call
        ('{"name": "Bob"}', ['{"name": "Bob"}']),
        ('\n{"name": "Bob", "age": 3} is the answer', ['\n{"name": "Bob", "age": 3} is the answer']),
        ('{"a": {"name": "f", "parameters": {}}}', ['{"a": {"name": "f", "parameters": {}}}']),
        ('{"name": "f", "parameters": 3}', ['{"name": "f", "parameters": 3}']),
        ("{a, b} is a set", ["{a, b} is a set"]),
        (f"The call is {CALL}", [f"The call is {CALL}"]),
        (f"{CALL} then {CALL}", [DONE, f" then {CALL}"]),
        ("{", ["{"]),
        # after the tag
        ("<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
        ("<|python_tag|> ", ["<|python_tag|> "]),
        ("x <|python_ta", ["x <|python_ta"]),
        # cut off, broken
        ('{"name": "f", "param', ['{"name": "f", "param']),
        ('{"name": "f", "parameters": {"a": "b', [("f", '{"a": "b', "cut")]),
        ('{"name": "f", "parameters": {"a": True}}', [("f", '{"a": True}}', "cut")]),
        (f'{{"name": "f", "parameters": {{"a": }}<|python_tag|>{CALL}', [("f", '{"a": }', "cut"), DONE]),
    ],
)
def test_llama3(text, expected):
    check("llama3", text, expected)


def test_text_that_does_not_begin_with_a_brace_is_passed_on_at_once():
    assert make_parser("llama3").feed("Hello {") == [TextDelta("Hello {")]
    assert run("llama3", ["{x", "} y"]) == [TextDelta("{x"), TextDelta("} y")]
