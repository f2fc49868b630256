"""From a request's ``response_format``, and vLLM's ``guided_*`` fields, to the grammar of the answer."""

from collections.abc import Mapping
from typing import Any

from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.spec import GrammarSpec
from serve.grammar_schema import grammar_schema

TYPES = ("text", "json_object", "json_schema", "regex", "regex_schema", "choice", "lark", "grammar")
_SOURCES = {"grammar": ("grammar", "lark"), "lark": ("lark", "grammar")}
_SOURCES |= {"regex": ("regex", "regex_schema"), "regex_schema": ("regex_schema", "regex")}  # LMDeploy's name
GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


def response_grammar(
    response_format: Mapping[str, Any] | None, guided: Mapping[str, Any] | None = None
) -> GrammarSpec | None:
    """What the answer must look like; None if it may be any text.

    Args:
        response_format: as the client wrote it: ``{"type": "json_schema", "json_schema": {"schema": {..}}}``, and so on. For
            ``regex`` (or ``regex_schema``), ``choice`` and ``lark`` (or ``grammar``) the field of that name
            has the source.
        guided: the request's ``guided_*`` fields, by name; None values count as absent.

    Raises:
        RequestError: unknown type, missing or wrong source, or two demands at once; ``param`` names the field.
    """
    demands = {key: value for key, value in (guided or {}).items() if key in GUIDED and value is not None}
    if response_format is not None and response_format.get("type") != "text":
        demands["response_format"] = response_format
    if len(demands) > 1:
        raise RequestError(f"only one of {', '.join(demands)} can hold for an answer", param=next(iter(demands)))
    for param, value in demands.items():
        if param == "response_format":
            return _of_type(value)
        return _grammar(param.removeprefix("guided_"), value, param)
    return None


def _of_type(response_format: Mapping[str, Any]) -> GrammarSpec:
    kind = response_format.get("type")
    if kind not in TYPES:
        raise RequestError(
            f"response_format.type is {kind!r}, must be one of {', '.join(TYPES)}", param="response_format.type"
        )
    if kind == "json_object":
        return GrammarSpec.json_object()
    param = f"response_format.{kind}"
    found = (response_format.get(field) for field in _SOURCES.get(kind, (kind,)))
    value = next((value for value in found if value is not None), None)
    if kind == "json_schema":
        value = value.get("schema") if isinstance(value, Mapping) else None
        kind, param = "json", "response_format.json_schema.schema"
    if value is None:
        raise RequestError(f"{param} is missing", param=param)
    return _grammar(kind, value, param)


def _grammar(kind: str, value: Any, param: str) -> GrammarSpec:
    if kind == "json":
        return GrammarSpec.json_schema({"enum": []} if value is False else grammar_schema(value, param))
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise RequestError(f"{param} must be a list of texts, not {str(value)[:100]!r}", param=param)
        return GrammarSpec.choice(value)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{param} must be a text, not {str(value)[:100]!r}", param=param)
    return GrammarSpec.regex(value) if "regex" in kind else GrammarSpec.lark(value)
