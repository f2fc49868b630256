"""Specifications to constraints: random walks stay inside the grammar and end by themselves."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.byte_tokenizer import ByteTokenizer
from support.grammar_walks import accepts, allowed, random_answer
from support.json_schemas import object_schemas

from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.compiler import GrammarCompiler
from jaxdeploy.grammar.spec import GrammarSpec, lark_text

TOKENIZER = ByteTokenizer(tags=["<tool_call>", "</tool_call>"])
VOCAB = TOKENIZER.vocab_size + 50
COMPILER = GrammarCompiler(TOKENIZER, VOCAB)


@given(object_schemas(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_walk_validates(schema, seed):
    make = COMPILER.compile(GrammarSpec.json_schema(schema))
    jsonschema.validate(json.loads(random_answer(make, TOKENIZER, random.Random(seed))), schema)


def test_json_object():
    make = COMPILER.compile(GrammarSpec.json_object())
    for seed in range(20):
        assert isinstance(json.loads(random_answer(make, TOKENIZER, random.Random(seed))), dict)
    assert accepts(make, TOKENIZER, '{"a": [1, {"b":null}], "c": "é\\n"}')
    assert not accepts(make, TOKENIZER, "[]")


def test_white_space_is_bounded():
    make = COMPILER.compile(GrammarSpec.json_object())
    assert accepts(make, TOKENIZER, '{"a":1,"b":2}')
    assert accepts(make, TOKENIZER, '{"a": 1, "b": 2}')
    for text in (' {"a":1}', '{ "a":1}', '{"a":  1}', '{"a":1\n}', '{"a":1} '):
        assert not accepts(make, TOKENIZER, text), text


def test_choice():
    texts = ["a", "ab", 'q"\n\\', "é<eos>"]
    make = COMPILER.compile(GrammarSpec.choice(texts))
    assert {random_answer(make, TOKENIZER, random.Random(seed)) for seed in range(60)} == set(texts)
    assert not accepts(make, TOKENIZER, "abb")
    assert not accepts(make, TOKENIZER, "é<eos>")  # spelled with the mark itself: the end token is no text


def test_regex_covers_the_whole_answer():
    make = COMPILER.compile(GrammarSpec.regex("[ab]{2,3}|é+"))
    assert [accepts(make, TOKENIZER, text) for text in ("ab", "aba", "éé", "a", "abab", "abé", "")] == [True] * 3 + [
        False
    ] * 4


def test_lark_with_marks():
    call, close = TOKENIZER.special_tokens["<tool_call>"], TOKENIZER.special_tokens["</tool_call>"]
    make = COMPILER.compile(GrammarSpec.lark(f"start: <[{call}]> {lark_text('f/x')} <[{close}]>"))
    assert accepts(make, TOKENIZER, "<tool_call>f/x</tool_call>")
    by_name = COMPILER.compile(GrammarSpec.lark('start: <tool_call> "x"'))
    assert allowed(by_name()) == [call]


def test_a_finished_answer_allows_every_end_token_and_nothing_else():
    make = GrammarCompiler(TOKENIZER, VOCAB, end_ids=(7, *TOKENIZER.eos_ids)).compile(GrammarSpec.choice(["ok"]))
    constraint = make()
    for token in TOKENIZER.encode("ok", add_special=False):
        constraint.advance(token)
    assert allowed(constraint) == [7, *TOKENIZER.eos_ids]
    constraint.advance(7)
    assert allowed(constraint) == [7, *TOKENIZER.eos_ids]


def test_masks_have_a_bit_for_the_whole_vocabulary_and_never_allow_padding():
    constraint = COMPILER.compile(GrammarSpec.regex("(?s:.*)"))()
    mask = constraint.mask()
    assert mask is not None
    assert mask.shape == (-(-VOCAB // 32),)
    assert max(allowed(constraint)) < TOKENIZER.vocab_size


def test_a_mask_is_read_as_often_as_one_likes():
    constraint = COMPILER.compile(GrammarSpec.choice(["ok"]))()
    assert allowed(constraint) == allowed(constraint) == [ord("o")]


def test_answers_do_not_share_state():
    make = COMPILER.compile(GrammarSpec.choice(["ab", "cd"]))
    first, second = make(), make()
    first.advance(ord("a"))
    assert allowed(first) == [ord("b")]
    assert allowed(second) == [ord("a"), ord("c")]


def test_a_token_that_is_not_allowed_is_an_error():
    constraint = COMPILER.compile(GrammarSpec.choice(["ab"]), param="guided_choice")()
    constraint.advance(ord("x"))
    with pytest.raises(RequestError, match="failed after 0 tokens") as caught:
        constraint.mask()
    assert caught.value.param == "guided_choice"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (GrammarSpec.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (GrammarSpec.json_schema({"type": "int"}), "Invalid type: int"),
        (GrammarSpec.json_schema({"$ref": "https://example.org/x"}), "example.org"),
        (GrammarSpec.json_schema({"type": "string", "format": "x"}), "Unknown format"),
        (GrammarSpec.json_schema({"x-guidance": {"lenient": True}, "not": {}}), "Unimplemented"),
        (GrammarSpec.json_schema(False), "Unsatisfiable"),
        (GrammarSpec("json_schema", "[1]"), "json_schema"),
        (GrammarSpec("json_schema", "{"), "json_schema"),
        (GrammarSpec.regex("("), "unclosed group"),
        (GrammarSpec.lark("start: nothing"), "nothing"),
        (GrammarSpec.choice([]), "nothing to choose"),
        (GrammarSpec.lark("start: <no_such_token>"), "no_such_token"),
    ],
)
def test_what_cannot_be_compiled_is_refused(spec, words):
    with pytest.raises(RequestError, match=words) as caught:
        COMPILER.compile(spec, param="tools")
    assert caught.value.param == "tools"


def test_any_json_value():
    make = COMPILER.compile(GrammarSpec.json_schema(True))
    for text in ("1", '"a"', "[]", "null", "{}"):
        assert accepts(make, TOKENIZER, text)


def test_grammars_are_kept_and_the_oldest_goes():
    compiler = GrammarCompiler(TOKENIZER, VOCAB, capacity=2)
    a, b, c = (GrammarSpec.choice([text]) for text in "abc")
    for spec in (a, b, a, c):
        compiler.compile(spec)
    assert list(compiler._compiled) == [a, c]


def test_many_threads_compile_and_walk():
    compiler = GrammarCompiler(TOKENIZER, VOCAB)
    specs = [GrammarSpec.choice([f"{i}x", f"{i}y"]) for i in range(4)]

    def work(i: int) -> str:
        return random_answer(compiler.compile(specs[i % 4]), TOKENIZER, random.Random(i))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(64)))
    assert all(answer in (f"{i % 4}x", f"{i % 4}y") for i, answer in enumerate(answers))
