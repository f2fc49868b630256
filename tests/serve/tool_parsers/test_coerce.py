"""Untyped values and what a schema makes of them."""

import pytest

from serve.tool_parsers.coerce import ANY, coerce, property_types, schema_types
from serve.tool_schema import normalize_schema


@pytest.mark.parametrize(
    ("types", "text", "expected"),
    [
        ("string", "12", '"12"'),
        ("string", ' a"\n', '" a\\"\\n"'),
        ("string", "null", '"null"'),
        ("integer", "12", "12"),
        ("integer", " -3\n", "-3"),
        ("integer", "+007", "7"),
        ("integer", "5.0", "5"),
        ("integer", "5.5", '"5.5"'),
        ("integer", "9" * 5000, f'"{"9" * 5000}"'),
        ("integer", "٣", '"٣"'),
        ("number", "1e5", "1e5"),
        ("number", ".5", "0.5"),
        ("number", "1e999", "1e999"),
        ("number", "+1e999", '"+1e999"'),
        ("number", "nan", '"nan"'),
        ("boolean", "True", "true"),
        ("boolean", "false", "false"),
        ("boolean", "yes", '"yes"'),
        ("array", '[1, "a\nb"]', '[1, "a\\nb"]'),
        ("array", "[1,", '"[1,"'),
        ("array", "{}", '"{}"'),
        ("object", '{"a": {}}', '{"a": {}}'),
        ("string null", "null", "null"),
        ("string null", "None", "null"),
        ("string integer", "5", "5"),
        ("string integer", "007", '"007"'),
        ("string integer", "5.5", '"5.5"'),
        ("string number", "5.5", "5.5"),
        ("string object", "{}", "{}"),
    ],
)
def test_coerce(types, text, expected):
    assert coerce(text, frozenset(types.split())) == expected


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "int"}, "integer"),
        ({"type": ["str", "null"]}, "string null"),
        ({"type": "string", "nullable": True}, "string null"),
        ({"enum": ["a", 1, None]}, "string integer null"),
        ({"const": 1.5}, "number"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string null"),
        ({"oneOf": [{"const": True}, {"const": []}]}, "boolean array"),
        ({"allOf": [{"$ref": "#/$defs/Color"}]}, "string"),
        ({"$ref": "#/$defs/Color", "description": "x"}, "string"),
    ],
)
def test_types_of_a_schema(schema, expected):
    root = {"$defs": {"Color": {"enum": ["red", "blue"], "type": "str"}}, "properties": {"p": schema}}
    root = normalize_schema(root)
    assert isinstance(root, dict)
    assert property_types(root, "p") == frozenset(expected.split())


@pytest.mark.parametrize(
    "schema", [{}, True, {"type": "foo"}, {"type": []}, {"$ref": "#/nowhere/x"}, {"$ref": "http://x"}, {"$ref": "#"}]
)
def test_a_schema_that_says_nothing_allows_anything(schema):
    assert schema_types(schema, {"$ref": "#"}) == ANY


def test_properties_that_are_not_named():
    assert property_types({}, "x") == ANY
    assert property_types({"additionalProperties": {"type": "string"}}, "x") == {"string"}
