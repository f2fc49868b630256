"""Python's names of types in tool schemas."""

import copy

import pytest

from jaxdeploy.errors import RequestError
from serve.tool_schema import normalize_schema, tool_parameters


def test_type_names_become_json_schemas():
    schema = {
        "type": "dict",
        "properties": {
            "type": {"type": "str", "enum": ["int", "str"], "default": {"type": "int"}},
            "a": {"type": "int", "const": {"type": "int"}},
            "b": {"type": ["float", "None"]},
            "c": {"type": "list", "items": {"type": "bool"}},
            "d": {"anyOf": [{"type": "tuple"}, {"$ref": "#/$defs/int"}, True]},
            "e": {
                "type": "object",
                "additionalProperties": {"type": "int"},
                "patternProperties": {"^int": {"type": "int"}},
            },
            "f": {"type": "number", "not": {"type": "int"}, "items": [{"type": "str"}]},
            "g": {"type": "frobnicate", "x-type": {"type": "int"}},
        },
        "$defs": {"int": {"type": "int"}},
        "required": ["int"],
    }  # fmt: skip
    before = copy.deepcopy(schema)
    assert normalize_schema(schema) == {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["int", "str"], "default": {"type": "int"}},
            "a": {"type": "integer", "const": {"type": "int"}},
            "b": {"type": ["number", "null"]},
            "c": {"type": "array", "items": {"type": "boolean"}},
            "d": {"anyOf": [{"type": "array"}, {"$ref": "#/$defs/int"}, True]},
            "e": {
                "type": "object",
                "additionalProperties": {"type": "integer"},
                "patternProperties": {"^int": {"type": "integer"}},
            },
            "f": {"type": "number", "not": {"type": "integer"}, "items": [{"type": "string"}]},
            "g": {"type": "frobnicate", "x-type": {"type": "int"}},
        },
        "$defs": {"int": {"type": "integer"}},
        "required": ["int"],
    }
    assert schema == before


def test_json_schema_stays_as_it_is():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["string", "null"]}}}
    assert normalize_schema(schema) == schema


def test_deep_schemas_are_refused_by_the_fields_name():
    schema: dict = {"type": "int"}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="64") as error:
        normalize_schema(schema, "response_format")
    assert error.value.param == "response_format"


def test_parameters_by_name_from_every_shape_of_tool():
    tools = [
        {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "int"}}}}},
        {"type": "function", "name": "flat", "parameters": {"type": "dict"}},
        {"type": "function", "function": {"name": "bare"}},
        {"type": "web_search"},
    ]
    assert tool_parameters(tools) == {
        "add": {"properties": {"a": {"type": "integer"}}},
        "flat": {"type": "object"},
        "bare": {},
    }
