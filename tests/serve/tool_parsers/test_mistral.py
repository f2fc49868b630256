"""Both Mistral formats."""

import pytest
from support.tool_parsing import check

F, G = ("f", '{"a": [1, "]"]}'), ("g", "{}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[TOOL_CALLS][{"name": "f", "arguments": {"a": [1, "]"]}}]', [F]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, "]"]}, "id": 1}, {"name": "g", "arguments": {}}]', [F, G]),
        ('Hm. [TOOL_CALLS][{"arguments": {}, "name": "g"}] Ok', ["Hm. ", G, " Ok"]),
        ('[TOOL_CALLS][{"name": "g"}', [G]),
        ('[TOOL_CALLS][{"name": "g", "arguments": {}}, {"name": "h', [G, ' {"name": "h']),
        ('[TOOL_CALLS][{"name": "g", "arguments": {"a"', [("g", '{"a"', "cut")]),
        ('[TOOL_CALLS][{"name": "g", "arguments": {"a": x}}]', [("g", '{"a": x}}]', "cut")]),
        ("[TOOL_CALLS][]", ["[TOOL_CALLS][]"]),
        ("[TOOL_CALLS", ["[TOOL_CALLS"]),
        ("a[0] [TOOL] b", ["a[0] [TOOL] b"]),
        ('[TOOL_CALLS]f[ARGS]{"a": [1, "]"]}', [F]),
        ('[TOOL_CALLS]f[CALL_ID]9abc[ARGS]{"a": [1, "]"]}[TOOL_CALLS]g[ARGS]{}', [F, G]),
        ('[TOOL_CALLS]f{"a": [1, "]"]}', [F]),
        ('Text[TOOL_CALLS]g[ARGS]{} and more', ["Text", G, " and more"]),
        ("[TOOL_CALLS]g[ARGS]", ["[TOOL_CALLS]g[ARGS]"]),
        ("[TOOL_CALLS]g[ARGS]3", ["[TOOL_CALLS]g[ARGS]3"]),
        ("[TOOL_CALLS]g h", ["[TOOL_CALLS]g h"]),
        ("[TOOL_CALLS]{}", ["[TOOL_CALLS]{}"]),
        ('[TOOL_CALLS]g[ARGS]{"a": "[TOOL_CALLS]', [("g", '{"a": "[TOOL_CALLS]', "cut")]),
        ("[TOOL_CALLS]g[ARGS]{oops[TOOL_CALLS]g[ARGS]{}", [("g", "{oops", "cut"), G]),
    ],
)  # fmt: skip
def test_mistral(text, expected):
    check("mistral", text, expected)
