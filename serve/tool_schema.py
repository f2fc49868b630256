"""The JSON schemas of a request's tools: found, and made JSON Schema where people write Python's names of types."""

from collections.abc import Iterable

from jaxdeploy.errors import RequestError

MAX_DEPTH = 64  # of nested schemas; far above real tools, far below Python's recursion limit

TYPE_NAMES = {
    "int": "integer",
    "float": "number",
    "double": "number",
    "str": "string",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "dict": "object",
    "none": "null",
    "None": "null",
}

# Keywords whose value is a schema or a list of schemas, and those whose value is an object of named schemas.
_SCHEMA = {"items", "additionalItems", "unevaluatedItems", "prefixItems", "contains", "propertyNames", "not", "if"}
_SCHEMA |= {"then", "else", "anyOf", "oneOf", "allOf", "additionalProperties", "unevaluatedProperties"}
_NAMED_SCHEMAS = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}


def normalize_schema(schema: object, param: str = "tools") -> object:
    """A copy of ``schema`` in which ``type`` names are JSON Schema's: ``int`` becomes ``integer``, and so on.

    Only places where a schema stands are touched: names of properties, enum values, defaults and examples stay. Unknown
    type names stay as well, for a validator to complain about.

    Raises:
        RequestError: schemas nested deeper than ``MAX_DEPTH``; ``param`` names the request's field.
    """
    return _normalize(schema, param, 0)


def _normalize(schema: object, param: str, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise RequestError(f"the schema in {param!r} is nested more than {MAX_DEPTH} deep; flatten it", param=param)
    if isinstance(schema, list):  # anyOf and its like, or the old list form of items
        return [_normalize(each, param, depth + 1) for each in schema]
    if not isinstance(schema, dict):  # true and false are schemas too
        return schema
    result = {}
    for key, value in schema.items():
        if key == "type":
            result[key] = [_type_name(each) for each in value] if isinstance(value, list) else _type_name(value)
        elif key in _SCHEMA:
            result[key] = _normalize(value, param, depth + 1)
        elif key in _NAMED_SCHEMAS and isinstance(value, dict):
            result[key] = {name: _normalize(each, param, depth + 1) for name, each in value.items()}
        else:
            result[key] = value
    return result


def _type_name(name: object) -> object:
    return TYPE_NAMES.get(name, name) if isinstance(name, str) else name


def tool_parameters(tools: Iterable[dict], param: str = "tools") -> dict[str, dict]:
    """The normalized parameter schema of each function tool, by the function's name; ``{}`` where it has none.

    Takes tools as chat completions has them (``{"type": "function", "function": {..}}``) and flat ones as the responses
    API has them. Tools of other kinds are passed over.
    """
    schemas: dict[str, dict] = {}
    for tool in tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            parameters = normalize_schema(function.get("parameters"), param)
            schemas[name] = parameters if isinstance(parameters, dict) else {}
    return schemas
