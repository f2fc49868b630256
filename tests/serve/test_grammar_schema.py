"""Schemas for grammars: never wider than the original, and closed where that is safe."""

import json
import random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.byte_tokenizer import ByteTokenizer
from support.grammar_walks import random_answer
from support.json_schemas import object_schemas

from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.compiler import GrammarCompiler
from jaxdeploy.grammar.spec import GrammarSpec
from serve.grammar_schema import arguments_schema, grammar_schema

TOKENIZER = ByteTokenizer()
COMPILER = GrammarCompiler(TOKENIZER, TOKENIZER.vocab_size)


@given(object_schemas(), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_answers_satisfy_the_original(schema, seed):
    make = COMPILER.compile(GrammarSpec.json_schema(grammar_schema(schema, "response_format")))
    value = json.loads(random_answer(make, TOKENIZER, random.Random(seed)))
    jsonschema.validate(value, schema)
    assert value.keys() <= schema["properties"].keys()


A = {"properties": {"a": {"type": "integer"}}}
CLOSED_A = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED_A),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
        ({"type": "object"}, {"type": "object"}),
        ({"items": A}, {"items": CLOSED_A}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED_A, {"type": "null"}]}),
        ({"$ref": "#/$defs/x", "$defs": {"x": A}}, {"$ref": "#/$defs/x", "$defs": {"x": CLOSED_A}}),
        ({**A, "additionalProperties": True}, {**A, "additionalProperties": True}),
        ({**A, "additionalProperties": A}, {**A, "additionalProperties": CLOSED_A}),
        ({**A, "required": ["b"]}, {**A, "required": ["b"]}),
        ({**A, "minProperties": 2}, {**A, "minProperties": 2}),
        ({"allOf": [A, A]}, {"allOf": [A, A]}),
        ({"oneOf": [A, A]}, {"oneOf": [A, A]}),
        ({"anyOf": [A], **A}, {"anyOf": [A], **A}),
        ({"enum": [A]}, {"enum": [A]}),
        (
            {"properties": {"properties": {"type": "int"}}},
            {"properties": {"properties": {"type": "integer"}}, "additionalProperties": False},
        ),
    ],
)
def test_objects_are_closed_where_nothing_else_has_a_say(schema, expected):
    assert grammar_schema(schema, "tools") == expected


def test_formats_that_are_only_notes_are_left_out():
    schema = {
        "properties": {"format": {"type": "string", "format": "date"}, "b": {"type": "string", "format": "password"}}
    }
    assert grammar_schema(schema, "tools")["properties"] == {
        "format": {"type": "string", "format": "date"},
        "b": {"type": "string"},
    }


def test_order_of_properties_stays():
    schema = {"properties": {name: {} for name in "zebra"}}
    assert list(grammar_schema(schema, "tools")["properties"]) == list("zebra")


@pytest.mark.parametrize("schema", [False, None, 1, "object", [A]])
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(RequestError, match="must hold a JSON Schema") as caught:
        grammar_schema(schema, "response_format")
    assert caught.value.param == "response_format"


def test_arguments_are_an_object():
    assert arguments_schema({"anyOf": [A, A]}) == {"anyOf": [CLOSED_A, CLOSED_A], "type": "object"}
    assert arguments_schema({**A, "type": ["object", "null"]}) == {**CLOSED_A, "type": "object"}
    assert arguments_schema({"type": "dict"}) == {"type": "object"}
