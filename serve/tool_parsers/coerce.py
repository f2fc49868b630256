"""Values written without a type (XML-style calls) read as what the tool's JSON schema says they are."""

import math
import re

from serve.tool_parsers.delta_writer import escaped
from serve.tool_parsers.json_scanner import clean_json

_INTEGER = re.compile(r"([-+]?[0-9]+)(?:\.0*)?")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_MAX_DIGITS = 4000  # CPython refuses to convert longer integers
_MAX_DEPTH = 16  # of references and alternatives followed

ANY = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})


def schema_types(schema: object, root: dict, depth: int = 0) -> frozenset[str]:
    """The JSON types that ``schema`` allows, as far as its own words and local ``$ref`` say; ``ANY`` if they don't.

    Args:
        schema: a normalized schema (or part of one).
        root: the schema that ``#/..`` references start from.
        depth: how many references and alternatives were followed already.
    """
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return ANY
    nullable = frozenset({"null"} if schema.get("nullable") is True else ())
    match schema:
        case {"type": str(name)} if name in ANY:
            return frozenset({name}) | nullable
        case {"type": [*names]}:
            return frozenset(name for name in names if isinstance(name, str)) & ANY or ANY
        case {"enum": [_, *_] as values}:
            return frozenset(_type_of(value) for value in values)
        case {"const": value}:
            return frozenset({_type_of(value)})
        case {"anyOf": [_, *_] as choices} | {"oneOf": [_, *_] as choices}:
            return frozenset().union(*(schema_types(choice, root, depth + 1) for choice in choices)) | nullable
        case {"allOf": [_, *_] as parts}:
            common = ANY.intersection(*(schema_types(part, root, depth + 1) for part in parts))
            return common | nullable if common else ANY
        case {"$ref": str(reference)}:
            return schema_types(_resolve(reference, root), root, depth + 1)
    return ANY


def coerce(text: str, types: frozenset[str]) -> str:
    """The JSON text of a value.

    A value that fits none of the types but string, or none at all, becomes a JSON string of the text as it is. Where
    several types fit, the narrower one wins: null, boolean, number, array or object, string.

    Args:
        text: what the model wrote between the tags.
        types: from ``schema_types``.
    """
    bare = text.strip()
    if "null" in types and bare in ("null", "None"):
        return "null"
    if "boolean" in types and bare.lower() in ("true", "false"):
        return bare.lower()
    if ("integer" in types or "number" in types) and (number := _number(bare, types)) is not None:
        return number
    if (("array" in types and bare.startswith("[")) or ("object" in types and bare.startswith("{"))) and (
        value := clean_json(bare)
    ) is not None:
        return value
    return f'"{escaped(text)}"'


def _number(text: str, types: frozenset[str]) -> str | None:
    # Where a string would do as well, only what JSON itself writes as a number is one ("007" and "+1" stay text).
    if "string" in types or "number" in types:
        is_json = clean_json(text) is not None and _FLOAT.fullmatch(text) is not None
        if is_json and ("number" in types or _INTEGER.fullmatch(text)):
            return text
        if "string" in types:
            return None
    if (whole := _INTEGER.fullmatch(text)) and len(text) < _MAX_DIGITS:
        return str(int(whole.group(1)))
    if "number" in types and _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return repr(float(text))
    return None


def _type_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _resolve(reference: str, root: dict) -> object:
    if not reference.startswith("#"):
        return None
    place: object = root
    for part in reference.removeprefix("#").split("/")[1:]:
        place = place.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
    return place


def property_types(parameters: dict, key: str) -> frozenset[str]:
    """The types of the property ``key`` of a tool's parameter schema; ``ANY`` for one that it does not name."""
    properties = parameters.get("properties")
    if isinstance(properties, dict) and key in properties:
        return schema_types(properties[key], parameters)
    return schema_types(parameters.get("additionalProperties"), parameters)
