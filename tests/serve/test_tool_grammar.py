"""What a tool grammar lets through is what the family's parser reads as valid calls, and nothing else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grammar_walks import accepts, allowed, random_answer
from support.internlm2_tokenizer import write_internlm2_tokenizer
from support.json_schemas import tools as tool_lists
from support.tool_parsing import function_tool
from support.tool_walks import PARSER_OF, assert_valid, marks_of, model_of, read, walk

from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.compiler import GrammarCompiler
from jaxdeploy.grammar.control_tokens import control_tokens
from jaxdeploy.grammar.spec import GrammarSpec
from jaxdeploy.text.tokenizer import load_tokenizer
from serve.tool_grammar import calls_or_answer, required_calls, strict_calls
from serve.tool_parsers.formats import GLM45, HERMES, INTERNLM2, LLAMA3, QWEN3_CODER, ToolFormat

FORMATS = pytest.mark.parametrize("tool_format", PARSER_OF, ids=lambda each: each.name)
WITH_TAGS = pytest.mark.parametrize("with_tags", [True, False], ids=["tags", "text"])
SOME = settings(max_examples=6, deadline=None)
SEEDS = st.integers(0, 2**32)

ADD = function_tool("add", {"a": {"type": "integer"}, "b": {"type": "integer"}})
NOTE = function_tool("note", {"text": {"type": "string", "maxLength": 9}})


def fits(spec, tool_format: ToolFormat, text: str, with_tags: bool = True) -> bool:
    tokenizer, compiler = model_of(tool_format, with_tags)
    return accepts(compiler.compile(spec, "tools"), tokenizer, text)


@FORMATS
@WITH_TAGS
@given(tools=tool_lists(), seed=SEEDS, parallel=st.booleans())
@SOME
def test_required(tool_format, with_tags, tools, seed, parallel):
    spec = required_calls(tools, tool_format, marks_of(tool_format, with_tags), parallel=parallel)
    free, calls = read(walk(spec, tool_format, with_tags, seed), tool_format, tools)
    assert free == ""
    assert calls
    assert len(calls) == 1 or (parallel and tool_format.parallel)
    assert_valid(calls, tools)


@FORMATS
@WITH_TAGS
@given(tools=tool_lists(), seed=SEEDS)
@SOME
def test_named(tool_format, with_tags, tools, seed):
    name = tools[-1]["function"]["name"]
    spec = required_calls(tools, tool_format, marks_of(tool_format, with_tags), name=name)
    free, calls = read(walk(spec, tool_format, with_tags, seed), tool_format, tools)
    assert (free, [called for called, _ in calls]) == ("", [name])
    assert_valid(calls, tools)


@FORMATS
@WITH_TAGS
@given(tools=tool_lists(), seed=SEEDS, parallel=st.booleans())
@SOME
def test_strict_tools_under_auto(tool_format, with_tags, tools, seed, parallel):
    for tool in tools:
        tool["function"]["strict"] = True
    spec = strict_calls(tools, tool_format, marks_of(tool_format, with_tags), parallel=parallel)
    _, calls = read(walk(spec, tool_format, with_tags, seed), tool_format, tools)
    assert parallel or len(calls) <= 1
    assert_valid(calls, tools)


@FORMATS
@WITH_TAGS
def test_auto_may_call_or_not(tool_format, with_tags):
    spec = strict_calls(
        [{**ADD, "function": {**ADD["function"], "strict": True}}], tool_format, marks_of(tool_format, with_tags)
    )
    right = tool_format.render([("add", {"a": 1, "b": -2})])
    assert fits(spec, tool_format, "Hello, {world}!", with_tags)
    assert fits(spec, tool_format, "", with_tags)
    assert fits(spec, tool_format, right, with_tags)
    assert not fits(spec, tool_format, tool_format.render([("sub", {"a": 1})]), with_tags)
    assert not fits(spec, tool_format, tool_format.render([("add", {"a": "x"})]), with_tags)
    if tool_format is not LLAMA3:
        assert fits(spec, tool_format, "I will add.\n" + right, with_tags)


@FORMATS
@WITH_TAGS
def test_the_rendering_of_a_call_is_accepted(tool_format, with_tags):
    spec = required_calls([ADD, NOTE], tool_format, marks_of(tool_format, with_tags))
    one, other = ("add", {"a": 1, "b": -2}), ("note", {"text": "é\n\"<x>'"})
    for calls in ([one], [other], [("add", {})], *([[one, other]] if tool_format.parallel else [])):
        assert fits(spec, tool_format, tool_format.render(calls), with_tags), calls
    wrong = [("add", {"a": 1, "c": 2}), ("add", {"a": 1.5}), ("note", {"text": "longer than nine"}), ("sub", {})]
    for call in wrong:
        assert not fits(spec, tool_format, tool_format.render([call]), with_tags), call


@FORMATS
@WITH_TAGS
def test_required_has_no_text_in_front(tool_format, with_tags):
    spec = required_calls([ADD], tool_format, marks_of(tool_format, with_tags))
    right = tool_format.render([("add", {"a": 1})])
    assert fits(spec, tool_format, right, with_tags)
    for text in ("", "Hello", f" {right}", f"Hello {right}", f"{right} done"):
        assert not fits(spec, tool_format, text, with_tags), text


def test_names_that_begin_alike():
    for tool_format in PARSER_OF:
        spec = required_calls(
            [function_tool("get"), function_tool("get_all")], tool_format, marks_of(tool_format, True)
        )
        for name in ("get", "get_all"):
            assert fits(spec, tool_format, tool_format.render([(name, {})]))
        assert not fits(spec, tool_format, tool_format.render([("get_al", {})]))


def test_no_parallel_calls():
    two = HERMES.render([("add", {}), ("add", {})])
    marks = marks_of(HERMES, True)
    assert fits(required_calls([ADD], HERMES, marks), HERMES, two)
    assert not fits(required_calls([ADD], HERMES, marks, parallel=False), HERMES, two)
    assert not fits(required_calls([ADD], HERMES, marks, name="add"), HERMES, two)


def test_calls_are_bounded():
    spec = required_calls([function_tool("f")], HERMES, marks_of(HERMES, True))
    assert fits(spec, HERMES, HERMES.render([("f", {})] * 32))
    assert not fits(spec, HERMES, HERMES.render([("f", {})] * 33))


def test_tools_that_are_not_strict_take_any_object_under_auto():
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    for tool_format in PARSER_OF:
        spec = strict_calls([strict, NOTE], tool_format, marks_of(tool_format, True))
        assert fits(spec, tool_format, tool_format.render([("note", {"text": "much longer than nine", "x": [1]})]))
        assert not fits(spec, tool_format, tool_format.render([("add", {"a": "much"})]))


ANSWERS = [
    (GrammarSpec.json_schema({"type": "object", "properties": {"z": {"type": "null"}}}), '{"z": null}', '{"z": 1}'),
    (GrammarSpec.json_object(), '{"q": [1]}', "[1]"),
    (GrammarSpec.choice(["yes/no", "no"]), "yes/no", "yes"),
    (GrammarSpec.regex(r"a/b\\/c|\n+"), "a/b\\/c", "a"),
]


@FORMATS
@WITH_TAGS
@pytest.mark.parametrize(("answer", "right", "wrong"), ANSWERS, ids=lambda each: getattr(each, "kind", ""))
def test_calls_beside_a_response_format(tool_format, with_tags, answer, right, wrong):
    spec = calls_or_answer([ADD], tool_format, marks_of(tool_format, with_tags), answer)
    bare = not (tool_format.begin + tool_format.call_begin)
    opening = tool_format.triggers[0] if bare else ""
    call = opening + tool_format.render([("add", {"a": 1})])
    for text in (right, call):
        assert fits(spec, tool_format, text, with_tags), text
    for text in (wrong, right + call, "Hello", opening + tool_format.render([("sub", {})])):
        assert not fits(spec, tool_format, text, with_tags), text


def test_grammar_for_the_answer_beside_tools_is_refused():
    with pytest.raises(RequestError, match="can't stand beside tools"):
        calls_or_answer([ADD], HERMES, {}, GrammarSpec.lark('start: "a"'))


def test_a_tool_without_parameters_takes_none():
    for parameters in (None, {}, {"type": "object", "properties": {}}):
        tool = {"type": "function", "function": {"name": "now", "parameters": parameters}}
        spec = required_calls([tool], INTERNLM2, marks_of(INTERNLM2, True))
        assert fits(spec, INTERNLM2, INTERNLM2.render([("now", {})]))
        assert not fits(spec, INTERNLM2, INTERNLM2.render([("now", {"a": 1})]))


def test_python_names_of_types():
    tool = function_tool("add", {"a": {"type": "int"}})
    spec = required_calls([tool], INTERNLM2, marks_of(INTERNLM2, True))
    assert fits(spec, INTERNLM2, INTERNLM2.render([("add", {"a": 3})]))
    assert not fits(spec, INTERNLM2, INTERNLM2.render([("add", {"a": 3.5})]))


def test_unknown_name_is_refused():
    with pytest.raises(RequestError, match="'sub', which is not among the tools") as caught:
        required_calls([ADD], HERMES, {}, name="sub")
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize("tool_format", [HERMES, QWEN3_CODER])
def test_unsupported_schema_is_refused(tool_format):
    tool = function_tool("f", {"a": {"type": "array", "uniqueItems": True}})
    with pytest.raises(RequestError, match="uniqueItems") as caught:
        model_of(tool_format, True)[1].compile(required_calls([tool], tool_format, {}), "tools")
    assert caught.value.param == "tools"


def test_parameters_that_are_no_object_are_refused():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}
    with pytest.raises(RequestError, match="must be of type 'object', not 'string'"):
        required_calls([tool], HERMES, {})


@pytest.mark.parametrize("tool_format", [QWEN3_CODER, GLM45], ids=lambda each: each.name)
@WITH_TAGS
@given(
    schema=st.sampled_from(
        [
            {"type": ["string", "null"], "maxLength": 6},
            {"type": ["string", "integer"], "minimum": 0, "maximum": 9, "maxLength": 4},
            {"type": ["string", "boolean", "number"], "maxLength": 4, "maximum": 5, "minimum": 0},
            {
                "anyOf": [
                    {"type": "string", "maxLength": 5},
                    {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
                ]
            },
            {"anyOf": [{"$ref": "#/$defs/word"}, {"type": "null"}]},
            {"oneOf": [{"$ref": "#/$defs/word"}, {"type": "object", "properties": {"a": {"$ref": "#/$defs/word"}}}]},
            {"allOf": [{"$ref": "#/$defs/word"}]},
            {"enum": ["1", 1, "null", None, "a", "ab"]},
            {"enum": ["true", 2]},
            {"const": "x y"},
            {"type": "string", "format": "date"},
            {"type": "string", "format": "uuid"},
            {"type": "string", "pattern": "a/b|c"},
            {"type": "string", "pattern": "\\d$", "maxLength": 5},
            {},
            {"minLength": 2, "maxLength": 4, "minimum": 3, "maximum": 4, "maxItems": 1, "additionalProperties": False},
        ]
    ),
    seed=SEEDS,
)
@settings(max_examples=32, deadline=None)
def test_tagged_values(tool_format, with_tags, schema, seed):
    parameters = {
        "type": "object",
        "properties": {"value": schema},
        "required": ["value"],
        "$defs": {"word": {"type": "string", "pattern": "^[a-z]{1,4}$"}},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    spec = required_calls(tools, tool_format, marks_of(tool_format, with_tags), parallel=False)
    free, calls = read(walk(spec, tool_format, with_tags, seed), tool_format, tools)
    assert free == ""
    assert "value" in calls[0][1]
    assert_valid(calls, tools)


@pytest.mark.parametrize("tool_format", [QWEN3_CODER, GLM45], ids=lambda each: each.name)
@WITH_TAGS
def test_tagged_values_of_several_types_keep_all_of_them(tool_format, with_tags):
    types = ["string", "null", "boolean", "number", "array", "object"]
    tool = function_tool("f", {"v": {"type": types}})
    spec = required_calls([tool], tool_format, marks_of(tool_format, with_tags))
    for value in ("text", "", "two\nlines", None, True, False, -1.5, 12, [1, "a"], {"a": None}, "trueish", "a 1"):
        assert fits(spec, tool_format, tool_format.render([("f", {"v": value})]), with_tags), value
    for value in ("[x", "+1", " {", "None", "TRUE"):
        assert not fits(spec, tool_format, tool_format.render([("f", {"v": value})]), with_tags), value


@pytest.mark.parametrize("tool_format", [QWEN3_CODER, GLM45], ids=lambda each: each.name)
@WITH_TAGS
@given(seed=SEEDS)
@SOME
def test_tagged_values_without_named_properties(tool_format, with_tags, seed):
    parameters = {"type": "object", "additionalProperties": {"type": ["integer", "string"], "maxLength": 4}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    spec = required_calls(tools, tool_format, marks_of(tool_format, with_tags), parallel=False)
    _, calls = read(walk(spec, tool_format, with_tags, seed), tool_format, tools)
    assert_valid(calls, tools)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"anyOf": [{"type": "object"}]}, "plain properties"),
        ({"type": "object", "minProperties": 1}, "plain properties"),
        ({"type": "object", "properties": {"a</arg_key>": {}}}, "can't be called"),
        ({"$ref": "#"}, "leads to itself"),
        ({"type": "object", "properties": {"a": {"enum": ["1", 2.5], "const": "</arg_value>"}}}, "<"),
        (
            {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}, {"maxLength": 3}]}}},
            "allOf of strings",
        ),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a|b$"}}}, "in brackets"),
    ],
)
def test_what_tagged_values_can_not_be_held_to_is_refused(parameters, words):
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(RequestError, match=words) as caught:
        model_of(GLM45, True)[1].compile(required_calls([tool], GLM45, marks_of(GLM45, True)), "tools")
    assert caught.value.param == "tools"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dummy prefix"])
def internlm2(request, tmp_path_factory):
    """InternLM2's kind of tokenizer, and the same with a space in front of every text; ends as the chat template says."""
    directory = tmp_path_factory.mktemp("internlm2")
    write_internlm2_tokenizer(directory, add_dummy_prefix=request.param)
    tokenizer = load_tokenizer(directory)
    ends = (*tokenizer.eos_ids, tokenizer.special_tokens["<|action_end|>"])
    return tokenizer, GrammarCompiler(tokenizer, 600, ends), frozenset(ends)


def test_sentencepiece_tokens_of_internlm2(internlm2):
    """The engine stops at the end of the action, which is an end token of the chat format and the end of the call."""
    tokenizer, compiler, ends = internlm2
    make = compiler.compile(required_calls([ADD, NOTE], INTERNLM2, control_tokens(tokenizer)), "tools")
    for seed in range(20):
        text = random_answer(make, tokenizer, random.Random(seed), ends=ends)
        free, calls = read(text, INTERNLM2, [ADD, NOTE])
        assert text.endswith("}")
        assert (free, len(calls)) == ("", 1)
        assert_valid(calls, [ADD, NOTE])


def test_forced_text_is_spelled_as_the_tokenizer_does(internlm2):
    tokenizer, compiler, _ = internlm2
    constraint = compiler.compile(required_calls([ADD], INTERNLM2, control_tokens(tokenizer)), "tools")()
    plain = [tokenizer.special_tokens["<|action_start|>"], tokenizer.special_tokens["<|plugin|>"]]
    for token in plain:
        assert allowed(constraint) == [token]
        constraint.advance(token)
    spelled = b""
    while len(choices := allowed(constraint)) == 1:
        spelled += tokenizer.token_bytes(choices[0])
        constraint.advance(choices[0])
    assert spelled.startswith(b'\n{"name": "add", "parameters"')
