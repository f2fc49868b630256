"""JSON schemas made ready for constrained decoding: every answer that the result allows, the original allows as well."""

from jaxdeploy.errors import RequestError
from serve.tool_schema import normalize_schema

# Formats that llguidance enforces. JSON Schema 2020-12 makes `format` a note, so others (int32, password) are left out.
ENFORCED_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)

_SCHEMA = ("items", "contains", "propertyNames", "additionalProperties", "additionalItems", "not", "if", "then", "else")
_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")

# Where one of these combines objects, an object that looks closed on its own would refuse what its partners ask for.
_COMBINES = {"allOf", "oneOf", "not", "if", "dependentSchemas", "unevaluatedProperties", "$dynamicRef"}
_UNION = {"anyOf", "$ref"}
_OBJECT_RULES = {"properties", "required", "additionalProperties", "patternProperties", "minProperties"}


def grammar_schema(schema: object, param: str) -> dict:
    """A schema for ``GrammarSpec.json_schema`` or a Lark grammar.

    - Names of types are JSON Schema's (``int`` is taken as ``integer``).
    - Formats that can't be enforced are left out.
    - Objects that name their properties have no others, unless ``additionalProperties`` says so: a small model would
      make up one after the other and never end. Schemas that combine others (``allOf`` and its like) stay open.

    Args:
        schema: as the client wrote it.
        param: the field that it stands in.

    Raises:
        RequestError: no schema at all, or one nested too deep; ``param`` is set.
    """
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise RequestError(f"{param!r} must hold a JSON Schema (an object), not {str(schema)[:100]!r}", param=param)
    normalized = normalize_schema(schema, param)
    rewritten = _rewrite(normalized, closes=_may_close(normalized))
    assert isinstance(rewritten, dict)
    return rewritten


def arguments_schema(parameters: object, param: str = "tools") -> dict:
    """The schema of a tool's arguments, which are an object; no parameters at all means that there are no arguments.

    Raises:
        RequestError: see ``grammar_schema``; also a schema that no object satisfies.
    """
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = grammar_schema(parameters, param)
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise RequestError(f"a tool's parameters must be of type 'object', not {kind!r}", param=param)
    return {**schema, "type": "object"}


def _may_close(node: object) -> bool:
    if isinstance(node, list):
        return all(map(_may_close, node))
    if not isinstance(node, dict):
        return True
    keys = node.keys()
    if keys & _COMBINES or (keys & _UNION and keys & _OBJECT_RULES):
        return False
    return all(map(_may_close, node.values()))


def _rewrite(schema: object, closes: bool) -> object:
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key in _SCHEMAS and isinstance(value, list):
            result[key] = [_rewrite(each, closes) for each in value]
        elif key in _SCHEMA:
            result[key] = _rewrite(value, closes)
        elif key in _NAMED_SCHEMAS and isinstance(value, dict):
            result[key] = {name: _rewrite(each, closes) for name, each in value.items()}
        elif key != "format" or value in ENFORCED_FORMATS:
            result[key] = value
    if closes and _names_all_properties(schema):
        result["additionalProperties"] = False
    return result


def _names_all_properties(schema: dict) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or schema.keys() & {
        "additionalProperties",
        "patternProperties",
        "minProperties",
    }:
        return False
    return isinstance(required, list) and all(name in properties for name in required)
