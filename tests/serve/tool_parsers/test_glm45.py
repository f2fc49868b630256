"""The GLM-4.5 format."""

import pytest
from support.tool_parsing import check, function_tool

TOOLS = [function_tool("f", {"s": {"type": "string"}, "n": {"type": "integer"}, "l": {"type": "array"}})]

THREE_TYPES = (
    'Ok\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>12 "ü"\n</arg_value>\n<arg_key>n</arg_key>\n'
    '<arg_value>3</arg_value>\n<arg_key>l</arg_key>\n<arg_value>["<", {}]</arg_value>\n</tool_call>'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            THREE_TYPES,
            ["Ok\n", ("f", '{"s": "12 \\"ü\\"\\n", "n": 3, "l": ["<", {}]}')],
        ),
        ("<tool_call>f</tool_call>\n<tool_call>g\n</tool_call>", [("f", "{}"), ("g", "{}")]),
        ("<tool_call>f<arg_key>n</arg_key><arg_value>3</arg_value></tool_call>", [("f", '{"n": 3}')]),
        ("<tool_call>f<arg_key>n</arg_key><arg_value>x</arg_value></tool_call>", [("f", '{"n": "x"}')]),
        ("<tool_call>g<arg_key>a</arg_key><arg_value>[1]</arg_value></tool_call>", [("g", '{"a": [1]}')]),
        ("<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>ab", [("f", '{"s": "ab', "cut")]),
        ("<tool_call>f\n<arg_key>n</arg_key>\n<arg_value>1", [("f", '{"n": 1', "cut")]),
        ("<tool_call>f\n<arg_key>n</arg_k", [("f", "", "cut"), "<arg_key>n</arg_k"]),
        ("<tool_call>f\n<arg_key>n</arg_key>\nx", [("f", "", "cut"), "<arg_key>n</arg_key>\nx"]),
        ("<tool_call>f\n<arg", ["<tool_call>f\n<arg"]),
        ("<tool_call>f g</tool_call>", ["<tool_call>f g</tool_call>"]),
        ('<tool_call>{"name": "f"}</tool_call>', ['<tool_call>{"name": "f"}</tool_call>']),
        ("<tool_call></tool_call>", ["<tool_call></tool_call>"]),
        (
            "<tool_call>f<arg_key>n</arg_key><arg_value>1</arg_value>oops</tool_call>",
            [("f", '{"n": 1', "cut"), "oops</tool_call>"],
        ),
    ],
)  # fmt: skip
def test_glm45(text, expected):
    check("glm45", text, expected, TOOLS)
