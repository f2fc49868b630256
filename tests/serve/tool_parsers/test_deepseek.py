"""Both DeepSeek formats."""

import pytest
from support.tool_parsing import check

from serve.tool_parsers.formats import DEEPSEEK_V3

CALLS, CALL, SEP, CALL_END, CALLS_END = DEEPSEEK_V3.tags
F, G = ("f", '{"a": "```"}'), ("g", "{}")
V3_F = f'{CALL}function{SEP}f\n```json\n{{"a": "```"}}\n```{CALL_END}'
V3_G = f"{CALL}function{SEP}g\n```json\n{{}}\n```{CALL_END}"
V31_F = f'{CALL}f{SEP}{{"a": "```"}}{CALL_END}'
V31_G = f"{CALL}g{SEP}{{}}{CALL_END}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{CALLS}{V3_F}{CALLS_END}", [F]),
        (f"Now.\n{CALLS}{V3_F}\n{V3_G}{CALLS_END}\n", ["Now.\n", F, G]),
        (f"{CALLS}{V31_F}{V31_G}{CALLS_END} Ok", [F, G, " Ok"]),
        (V31_G, [G]),
        (V3_F, [F]),
        (f"{CALLS}{CALL}function{SEP}{{}}{CALL_END}{CALLS_END}", [("function", "{}")]),
        (f"{CALLS}{V31_G.removesuffix(CALL_END)}", [G]),
        (f"{CALLS}{CALLS_END}", [f"{CALLS}{CALLS_END}"]),
        (f"{CALLS}{CALL}function{SEP}", [f"{CALLS}{CALL}function{SEP}"]),
        (f"{CALLS}{CALL}function{SEP}f\n``", [f"{CALLS}{CALL}function{SEP}f\n``"]),
        (f"{CALL}f {{}}", [f"{CALL}f {{}}"]),
        (f"{CALLS}{CALL}function{SEP}f\n```json\n{{\"a", [("f", '{"a', "cut")]),
        (f"{CALL}function{SEP}f\n```json\n{{a}}\n```{CALL_END}{CALLS_END}x", [("f", "{a}", "cut"), "x"]),
        (f"{CALL}f{SEP}{{a}}{CALL_END}{V31_G}", [("f", "{a}", "cut"), G]),
        ("a <｜tool▁ b", ["a <｜tool▁ b"]),
    ],
)  # fmt: skip
def test_deepseek(text, expected):
    check("deepseek", text, expected)
