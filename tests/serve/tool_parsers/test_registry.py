"""Choice of the parser and the format from what a model says of itself."""

import pytest

from jaxdeploy.errors import ConfigError
from serve.tool_parsers.registry import ALIASES, PARSERS, choose_format, choose_parser_name, make_parser

QWEN3 = "{{ '<tool_call>\n{\"name\": ...}\n</tool_call>' }}"


@pytest.mark.parametrize(
    ("family", "template", "tokens", "expected"),
    [
        ("internlm2", None, (), "internlm2"),
        ("internlm3", "..", ["<|action_start|>", "<|plugin|>"], "internlm2"),
        ("qwen3", QWEN3, (), "hermes"),
        ("qwen3", QWEN3 + "<function=x>\n<parameter=y>", ["<tool_call>"], "qwen3_coder"),
        ("llama", QWEN3, ["<|python_tag|>"], "hermes"),  # Hermes 3 on Llama 3.1
        ("llama", "{# ipython #}", ["<|python_tag|>"], "llama3"),
        ("mistral", "[AVAILABLE_TOOLS] [TOOL_CALLS]", (), "mistral"),
        ("mistral", None, ["[TOOL_CALLS]"], "mistral"),
        ("qwen2", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", ["<tool_call>"], "deepseek"),  # R1 distilled
        ("glm4", "<tool_call>..<arg_key>", (), "glm45"),
        ("llama", "{{ messages }}", ["<s>"], None),
        ("llama", None, (), None),
    ],
)
def test_choose_parser_name(family, template, tokens, expected):
    assert choose_parser_name(family, template, tokens) == expected


@pytest.mark.parametrize(
    ("name", "template", "tokens", "expected"),
    [
        ("mistral", "[TOOL_CALLS]", (), "mistral"),
        ("mistral", "[TOOL_CALLS]name[ARGS]", (), "mistral_named"),
        ("mistral", None, ["[ARGS]"], "mistral_named"),
        ("deepseek", "function<｜tool▁sep｜>..```json", (), "deepseek_v3"),
        ("deepseek", None, (), "deepseek_v3"),
        ("deepseek", "<｜tool▁sep｜>", (), "deepseek_v31"),
        ("qwen3", QWEN3, (), "hermes"),
    ],
)
def test_choose_format(name, template, tokens, expected):
    assert choose_format(name, template, tokens).name == expected


@pytest.mark.parametrize("call", [make_parser, lambda name: choose_format(name, None)])
def test_an_unknown_name_lists_the_known_ones(call):
    with pytest.raises(ConfigError, match=r"'nope'.*internlm2, hermes") as error:
        call("nope")
    assert all(name in str(error.value) for name in PARSERS)


@pytest.mark.parametrize("name", [*PARSERS, *ALIASES])
def test_parsers_pass_plain_text_on_and_end_once(name):
    parser = make_parser(name)
    assert [delta.text for delta in parser.feed("Hi")] == ["Hi"]  # pyright: ignore
    assert parser.feed("") == []
    assert parser.finish() == []
    assert parser.finish() == []
    with pytest.raises(RuntimeError, match="after finish"):
        parser.feed("x")


def test_ids_are_fresh():
    call = '<tool_call>{"name": "f"}'
    ids = {make_parser("hermes").feed(call)[0].id for _ in range(20)}  # pyright: ignore
    assert len(ids) == 20
    assert all(each.startswith("call_") and len(each) == 29 for each in ids)
