"""What holds for every format: calls survive any text around them and any cutting, and nothing is lost."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tool_parsing import function_tool, run, short

from serve.tool_parsers import formats
from serve.tool_parsers.deltas import TextDelta, merge
from serve.tool_parsers.json_scanner import WHITE_SPACE
from serve.tool_parsers.registry import PARSERS

FORMATS = {
    formats.INTERNLM2: "internlm2",
    formats.HERMES: "hermes",
    formats.QWEN3_CODER: "qwen3_coder",
    formats.LLAMA3: "llama3",
    formats.MISTRAL: "mistral",
    formats.MISTRAL_NAMED: "mistral",
    formats.DEEPSEEK_V3: "deepseek",
    formats.DEEPSEEK_V31: "deepseek",
    formats.GLM45: "glm45",
}
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TYPES = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
SCRAPS = [
    *sorted({tag for each in FORMATS for tag in each.tags + each.triggers}),
    "{", "}", '{"name": "f", "arguments": ', '{"a": 1}', '"', "\\", "[", "]", ",", " ", "\n", ";", "é", "f", "function",
    '{"name": "g"}', "```", "```python\n", "<function=g>", "</function>", "<parameter=a>", "</parameter>",
    "a</arg_key>", ">", "<", "<|",
]  # fmt: skip


@st.composite
def arguments_for(draw, style: str) -> dict:
    """Arguments that the format can write: XML can't carry every key or string."""
    if style != "xml":
        return draw(st.dictionaries(st.text(max_size=6), JSON, max_size=3))
    values = JSON.filter(lambda value: "</" not in json.dumps(value, ensure_ascii=False))
    return draw(st.dictionaries(NAMES, values, max_size=3))


@st.composite
def cut(draw, text: str) -> list[str]:
    """The text in pieces."""
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda each: each.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_calls_come_back_as_they_were_written(tool_format, data):
    name = FORMATS[tool_format]
    calls = data.draw(st.lists(st.tuples(NAMES, arguments_for(tool_format.style)), min_size=1, max_size=3))
    plain = st.text(max_size=12).filter(lambda text: not any(tag in text for tag in tool_format.triggers))
    before = data.draw(plain) if tool_format.call_begin or tool_format.begin else ""
    after = data.draw(plain.filter(lambda text: text.lstrip(" \n\t;}").isalpha() or not text))
    # XML values have no type of their own: the schema tells, and one name must not have two
    calls = [(f"{each}{index}", arguments) for index, (each, arguments) in enumerate(calls)]
    tools = [
        function_tool(each, {key: {"type": TYPES[type(value)]} for key, value in arguments.items()})
        for each, arguments in calls
    ]
    pieces = data.draw(cut(before + tool_format.render(calls) + after))

    items = short(merge(run(name, pieces, tools)))

    texts = [item for item in items if isinstance(item, str)]
    assert texts == [text for text in (before, after) if text.strip(WHITE_SPACE)]
    found = [item for item in items if not isinstance(item, str)]
    assert [item[0] for item in found] == [each for each, _ in calls]
    assert [json.loads(item[1]) for item in found] == [arguments for _, arguments in calls]
    assert all(len(item) == 2 for item in found)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_text_is_taken_the_same_however_it_is_cut_and_none_is_lost(name, data):
    text = "".join(data.draw(st.lists(st.sampled_from(SCRAPS) | st.text(max_size=3), max_size=14)))
    whole = merge(run(name, [text]))
    assert merge(run(name, list(text))) == whole
    assert merge(run(name, data.draw(cut(text)))) == whole
    items = short(whole)
    if not any(isinstance(item, tuple) for item in items):
        assert "".join(delta.text for delta in whole if isinstance(delta, TextDelta)) == text
    rest = text
    for item in items:  # all text deltas stand in the input, in this order
        if isinstance(item, str):
            assert item in rest
            rest = rest[rest.index(item) + len(item) :]


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda each: each.name)
def test_a_call_cut_off_anywhere_is_not_swallowed(tool_format):
    text = tool_format.render([("f", {"a": "ALPHA"}), ("g", {}), ("h", {"b": "BETA"})])
    for end in range(len(text)):
        items = short(merge(run(FORMATS[tool_format], [text[:end]])))
        written = "".join(item if isinstance(item, str) else item[0] + item[1] for item in items)
        assert [value for value in ("ALPHA", "BETA") if value in text[:end]] == [
            value for value in ("ALPHA", "BETA") if value in written
        ]
        if not any(isinstance(item, tuple) for item in items):
            assert written == text[:end]
