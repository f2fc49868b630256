"""The Qwen3-Coder format."""

import pytest
from support.tool_parsing import check, function_tool, run

from serve.tool_parsers.deltas import CallArguments, CallEnd, CallStart

TOOLS = [
    function_tool(
        "write",
        {"path": {"type": "str"}, "lines": {"type": "int"}, "force": {"type": "bool"}, "meta": {"type": "dict"}},
    )
]
FOUR_TYPES = (
    'Sure.\n<tool_call>\n<function=write>\n<parameter=path>\n/tmp/ü "1"\n</parameter>\n'
    "<parameter=lines>\n12\n</parameter>\n<parameter=force>\nTrue\n</parameter>\n"
    '<parameter=meta>\n{"a": [1, "}"]}\n</parameter>\n</function>\n</tool_call>'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            FOUR_TYPES,
            [
                "Sure.\n",
                ("write", '{"path": "/tmp/ü \\"1\\"", "lines": 12, "force": true, "meta": {"a": [1, "}"]}}'),
            ],
        ),
        ("<tool_call><function=now></function></tool_call>", [("now", "{}")]),
        ("<tool_call><function=now></tool_call>", [("now", "{}")]),
        ("<function=now>\n</function>", [("now", "{}")]),
        (
            "<tool_call>\n<function=a>\n</function>\n</tool_call>\n<tool_call>\n<function=b>\n</function>\n</tool_call>\n",
            [("a", "{}"), ("b", "{}")],
        ),
        # one newline on each side belongs to the format, more to the value
        ("<function=write><parameter=path>\n\na\n\n</parameter></function>", [("write", '{"path": "\\na\\n"}')]),
        ("<function=write><parameter=path>\n</parameter></function>", [("write", '{"path": ""}')]),
        ("<function=write><parameter=path>12</parameter></function>", [("write", '{"path": "12"}')]),
        ("<function=write><parameter=path><b></parameter </parameter></function>",
         [("write", '{"path": "<b></parameter "}')]),
        # a value that is not what the schema says stays a string
        ("<function=write><parameter=lines>many</parameter></function>", [("write", '{"lines": "many"}')]),
        # no schema: JSON if it is, else a string
        ("<function=x><parameter=k>1.5</parameter><parameter=l>two</parameter></function>",
         [("x", '{"k": 1.5, "l": "two"}')]),
        # cut off
        ("<tool_call>\n<function=wri", ["<tool_call>\n<function=wri"]),
        ("<tool_call><function=write>", ["<tool_call><function=write>"]),
        ("<function=write><parameter=pa", [("write", "", "cut"), "<parameter=pa"]),
        ("<function=write><parameter=path>\nab\n", [("write", '{"path": "ab\\n', "cut")]),
        ("<function=write><parameter=lines>\n1", [("write", '{"lines": 1', "cut")]),
        ("<function=write><parameter=lines>1</parameter>\n", [("write", '{"lines": 1', "cut")]),
        ("<function=write><parameter=lines>1</parameter></fun", [("write", '{"lines": 1', "cut"), "</fun"]),
        # malformed
        ("<tool_call>write()</tool_call>", ["<tool_call>write()</tool_call>"]),
        ("<function=a b></function>", ["<function=a b></function>"]),
        ("<function=></function>", ["<function=></function>"]),
        ("<function=f>text</function>", ["<function=f>text</function>"]),
        ("<function=f><parameter=a>1</parameter>text</function>", [("f", '{"a": 1', "cut"), "text</function>"]),
    ],
)  # fmt: skip
def test_qwen3_coder(text, expected):
    check("qwen3_coder", text, expected, TOOLS)


def test_strings_stream_while_they_are_written():
    deltas = run("qwen3_coder", ["<function=write><parameter=path>\na", 'b"', "\n</para", "meter></function>"], TOOLS)
    assert deltas == [
        CallStart(0, "id0", "write"),
        CallArguments(0, '{"path": "a'),
        CallArguments(0, 'b\\"'),
        CallArguments(0, '"}'),
        CallEnd(0),
    ]
