"""Arguments written as tagged values without types: strings as they are, anything else as JSON."""

import json
import re
from collections.abc import Iterator

from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.spec import lark_text
from serve.lark_rules import ANY_TEXT, LarkRules, lark_regex
from serve.tool_parsers.coerce import ANY, coerce, schema_types
from serve.tool_parsers.formats import ToolFormat

_SPACE = r"[\s\x1c-\x1f]*"  # what Python's str.strip takes away
_READ_AS_OTHER = {
    "null": f"/{_SPACE}(null|None){_SPACE}/",
    "boolean": f"/{_SPACE}(?i:true|false){_SPACE}/",
    "integer": f"/{_SPACE}[-+.0-9](?s:.*)/",
    "number": f"/{_SPACE}[-+.0-9](?s:.*)/",
    "array": rf"/{_SPACE}\[(?s:.*)/",
    "object": rf"/{_SPACE}\{{(?s:.*)/",
}
_WORDS = {"null": ("null",), "boolean": ("true", "false")}
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[a-z0-9]{1,32}@[a-z0-9]{1,32}\.[a-z]{2,8}",
    "ipv4": r"(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}",
}
_NOTES = {"title", "description", "default", "examples", "deprecated", "$comment", "nullable"}
_UNTOLD = {"patternProperties", "minProperties", "maxProperties", "dependentRequired", "propertyNames"}
_UNTOLD |= {"anyOf", "oneOf", "allOf", "not", "if", "dependentSchemas", "unevaluatedProperties"}


class XmlArgumentsGrammar:
    """The parameters of one tool in a format of style ``xml``. What comes out is what the parser's ``coerce`` reads back.

    Args:
        rules: where rules are added.
        tool_format: the tags.
        parameters: from ``arguments_schema``.
    """

    def __init__(self, rules: LarkRules, tool_format: ToolFormat, parameters: dict):
        self._rules, self._format = rules, tool_format
        self._root = parameters
        self._definitions = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
        self._close = tool_format.parameter_end.strip()

    def terms(self) -> str:
        """Terms for all parameters, in the order of the schema's properties.

        Raises:
            RequestError: the schema says something that tagged values can't be held to.
        """
        schema = self._resolved(self._root)
        if untold := _UNTOLD & schema.keys():
            raise RequestError(
                f"a tool's parameters must be plain properties for this model's call format; found {sorted(untold)}",
                param="tools",
            )
        properties, required = schema.get("properties", {}), schema.get("required", [])
        named = {**properties, **{name: True for name in required if name not in properties}}
        terms = [self._parameter(key, value) + ("" if key in required else "?") for key, value in named.items()]
        others = schema.get("additionalProperties", True)
        if others is not False:
            terms.append(self._other_parameters(others))
        return " ".join(terms)

    def _parameter(self, key: str, schema: object) -> str:
        if any(tag in key for tag in self._format.key_end.split()) or key != key.strip() or not key:
            raise RequestError(f"a parameter can't be called {key!r} in this model's call format", param="tools")
        head = self._rules.text(f"{self._format.parameter_begin}{key}{self._format.key_end}")
        return self._rules.rule(f"{head} ({' | '.join(self._value(schema))})")

    def _other_parameters(self, schema: object) -> str:
        names = "|".join(map(re.escape, self._root.get("properties", {})))
        key = self._rules.terminal("/[A-Za-z_][A-Za-z0-9_]{0,31}/" + (f" & ~/{names}/" if names else ""))
        begin, end = self._rules.text(self._format.parameter_begin), self._rules.text(self._format.key_end)
        return self._rules.rule(f"{begin} {key} {end} ({' | '.join(self._value(schema))})") + "*"

    def _value(self, schema: object) -> Iterator[str]:
        """Terms for a value and the tag behind it, one for each way of writing it."""
        schema = schema if isinstance(schema, dict) else {}
        types = schema_types(schema, self._root)
        if "string" not in types:
            yield f"{self._rules.json({**self._definitions, **schema})} {self._rules.text(self._format.parameter_end)}"
            return
        branches = list(self._branches(schema))
        texts = [self._text(branch, types) for branch in branches if "string" in schema_types(branch, self._root)]
        words = [word for kind, spelled in _WORDS.items() if self._some(branches, kind) for word in spelled]
        texts += [way for branch in branches for way in self._literals(branch, types)]
        ways = [f"({way})" for way in texts if way] + [lark_text(word) for word in words]
        if ways:
            expression = self._rules.free_text(self._close, expression=f"({' | '.join(ways)})")
            yield self._rules.until(expression, self._format.parameter_end)
        structured = [branch for branch in branches if not _values(branch) and self._is_structured(branch)]
        if structured:
            value = self._rules.json({**self._definitions, "anyOf": structured})
            yield f"{value} {self._rules.text(self._format.parameter_end)}"
        if not ways and not structured:
            raise RequestError(f"no text stands for any value of {json.dumps(schema)[:200]}", param="tools")

    def _some(self, branches: list[dict], kind: str) -> bool:
        return any(not _values(branch) and kind in schema_types(branch, self._root) for branch in branches)

    def _is_structured(self, branch: dict) -> bool:
        return not schema_types(branch, self._root) & {"string", "null", "boolean"}

    def _branches(self, schema: dict) -> Iterator[dict]:
        """Schemas of one type each, or of listed values, that together say the same."""
        schema = self._resolved(schema)
        notes = {key: value for key, value in schema.items() if key not in _NOTES}
        union = next((key for key in ("anyOf", "oneOf", "allOf") if key in notes), None)
        if union is not None:
            parts = notes.pop(union)
            strings = [part for part in parts if "string" in schema_types(part, self._root)]
            if notes or (union == "allOf" and len(parts) > 1) or (union == "oneOf" and len(strings) > 1):
                raise RequestError(
                    f"{union} of strings can't be enforced in this model's call format: {json.dumps(schema)[:200]}",
                    param="tools",
                )
            for part in parts:
                yield from self._branches(part if isinstance(part, dict) else {})
        elif _values(notes):
            yield notes
        else:
            types = schema_types(notes, self._root)
            kinds = sorted(types - {"integer"} if "number" in types else types)
            yield from ({**notes, "type": kind} for kind in kinds)

    def _text(self, branch: dict, types: frozenset[str]) -> str:
        """An expression for the strings of a branch, without those that would be read as another type."""
        if _values(branch):
            return ""
        ways = [f"/(?s:.{{{branch.get('minLength', 0)},{branch.get('maxLength', '')}}})/"]
        if "pattern" in branch:
            ways.append(_pattern(branch["pattern"]))
        if branch.get("format") in _FORMATS:
            ways.append(f"/{_FORMATS[branch['format']]}/")
        ways += [f"~{_READ_AS_OTHER[kind]}" for kind in sorted(types - {"string"})]
        return " & ".join(ways)

    def _literals(self, branch: dict, types: frozenset[str]) -> Iterator[str]:
        for value in _values(branch):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            read = json.loads(coerce(text, types))
            same = read == value and isinstance(read, bool) == isinstance(value, bool)
            if same and self._close not in text:
                yield lark_text(text)

    def _resolved(self, schema: dict) -> dict:
        for _ in range(len(ANY) * 2):
            reference = schema.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#"):
                return schema
            place: object = self._root
            for part in reference.removeprefix("#").split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                place = place.get(part) if isinstance(place, dict) else None
            siblings = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**siblings, **(place if isinstance(place, dict) else {})}
        raise RequestError(f"the reference {schema['$ref']!r} leads to itself", param="tools")


def _values(schema: dict) -> list:
    return [schema["const"]] if "const" in schema else schema.get("enum", [])


def _pattern(pattern: str) -> str:
    """A JSON Schema pattern, which may match anywhere, as an expression for the whole text."""
    body = re.sub(r"\\(.)", lambda escape: "[0-9]" if escape[1] == "d" else escape[0], pattern)
    starts, ends = body.startswith("^"), body.endswith("$") and not body.endswith("\\$")
    inner = body[starts : len(body) - ends]
    if (starts or ends) and "|" in re.sub(r"\(.*\)", "", inner):
        raise RequestError(f"the pattern {pattern!r} must have its | in brackets", param="tools")
    return " ".join([*([] if starts else [ANY_TEXT]), lark_regex(f"({inner})"), *([] if ends else [ANY_TEXT])])
