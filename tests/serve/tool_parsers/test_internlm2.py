"""InternLM2's calls: plugin and interpreter."""

import pytest
from support.tool_parsing import check, function_tool, run

from serve.tool_parsers.deltas import CallArguments, CallEnd, CallStart, TextDelta, merge

BEGIN, END = "<|action_start|><|plugin|>\n", "<|action_end|>"
CODE = "<|action_start|><|interpreter|>\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Hello.", ["Hello."]),
        ("a <|action_ and <| more", ["a <|action_ and <| more"]),
        (f'{BEGIN}{{"name": "add", "parameters": {{"a": 3, "b": 5}}}}{END}', [("add", '{"a": 3, "b": 5}')]),
        (f'I add.{BEGIN}{{"name": "add", "parameters": {{}}}}{END}', ["I add.", ("add", "{}")]),
        (f'{BEGIN}{{"name": "now"}}{END}', [("now", "{}")]),
        (f'{BEGIN}{{"name": "f", "parameters": {{"s": "}}\\"{{ 你好 🙂 <|action_end|>"}}}}{END} Done.',
         [("f", '{"s": "}\\"{ 你好 🙂 <|action_end|>"}'), " Done."]),
        # the engine stops on <|action_end|> and may not show it
        (f'{BEGIN}{{"name": "add", "parameters": {{"a": 3}}}}', [("add", '{"a": 3}')]),
        (f'{BEGIN}{{"name": "add", "parameters": {{"a": 3', [("add", '{"a": 3', "cut")]),
        (f'{BEGIN}{{"name": "ad', [f'{BEGIN}{{"name": "ad']),
        (f'{BEGIN}{{"name": "add"', [f'{BEGIN}{{"name": "add"']),
        (BEGIN, [BEGIN]),
        ("<|action_start|> <|plugin|> {}", ["<|action_start|> <|plugin|> {}"]),
        (f"{BEGIN}add(3, 5){END}", [f"{BEGIN}add(3, 5){END}"]),
        (f"<|action_start|>oops{END}", [f"<|action_start|>oops{END}"]),
        (f'{BEGIN}{{"name": "f", "parameters": {{"a": 1,}}}}{END}ok', [("f", '{"a": 1,}}', "cut"), "ok"]),
        (f'<|action_start|> <|plugin|>{{"name": "f", "parameters": {{}}}}{END}', [("f", "{}")]),
    ],
)  # fmt: skip
def test_plugin(text, expected):
    check("internlm2", text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'{CODE}```python\nprint("hi\\n")\n```{END}', [("interpreter", '{"code": "print(\\"hi\\\\n\\")"}')]),
        (f"Run:{CODE}```python\na = 1\nb = 2\n```\n{END}\n", ["Run:", ("interpreter", '{"code": "a = 1\\nb = 2"}')]),
        (f"{CODE}```python\n```{END}", [("interpreter", '{"code": ""}')]),
        (f"{CODE}```python\nx = '''\n```\n'''\n```{END}", [("interpreter", "{\"code\": \"x = '''\\n```\\n'''\"}")]),
        (f"{CODE}```python\nx\n```\n```{END}", [("interpreter", '{"code": "x\\n```"}')]),
        (f"{CODE}print(1){END}", [("interpreter", '{"code": "print(1)"}')]),
        (f"{CODE}```python\nprint(1)\n```", [("interpreter", '{"code": "print(1)"}')]),
        (f"{CODE}```python\nprint(1", [("interpreter", '{"code": "print(1', "cut")]),
        (f"{CODE}", [CODE]),
    ],
)
def test_interpreter(text, expected):
    check("internlm2", text, expected)


def test_interpreter_takes_the_name_and_the_property_of_the_tool_that_looks_like_one():
    tools = [function_tool("add", {"a": {}}), function_tool("python", {"source": {"type": "str"}})]
    check("internlm2", f"{CODE}```python\n1\n```{END}", [("python", '{"source": "1"}')], tools)


def test_arguments_stream_while_they_are_written():
    deltas = run(
        "internlm2", ["Sum", "<|action_start|><|plu", 'gin|>\n{"name": "add", "parameters": {"a"', ": 3}", "}"]
    )
    assert deltas == [
        TextDelta("Sum"),
        CallStart(0, "id0", "add"),
        CallArguments(0, '{"a"'),
        CallArguments(0, ": 3}"),
        CallEnd(0),
    ]
    assert len(merge(deltas)) == 4
