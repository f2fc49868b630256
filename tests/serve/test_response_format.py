"""``response_format`` and ``guided_*`` as grammars."""

import pytest

from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.spec import GrammarSpec
from serve.response_format import response_grammar

OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**OPEN, "additionalProperties": False}


def json_schema(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize(
    ("response_format", "spec"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, GrammarSpec.json_object()),
        (json_schema(OPEN), GrammarSpec.json_schema(CLOSED)),
        (json_schema(True), GrammarSpec.json_schema({})),
        (json_schema(False), GrammarSpec.json_schema(False)),
        ({"type": "regex", "regex": "a+"}, GrammarSpec.regex("a+")),
        ({"type": "regex_schema", "regex_schema": "a+"}, GrammarSpec.regex("a+")),
        ({"type": "choice", "choice": ["a", "b"]}, GrammarSpec.choice(["a", "b"])),
        ({"type": "lark", "lark": 'start: "a"'}, GrammarSpec.lark('start: "a"')),
        ({"type": "grammar", "grammar": 'start: "a"'}, GrammarSpec.lark('start: "a"')),
        ({"type": "grammar", "lark": 'start: "a"'}, GrammarSpec.lark('start: "a"')),
    ],
)
def test_response_format(response_format, spec):
    assert response_grammar(response_format) == spec


@pytest.mark.parametrize(
    ("guided", "spec"),
    [
        ({"guided_json": OPEN}, GrammarSpec.json_schema(CLOSED)),
        ({"guided_regex": "a+", "guided_choice": None}, GrammarSpec.regex("a+")),
        ({"guided_choice": ["a"]}, GrammarSpec.choice(["a"])),
        ({"guided_grammar": 'start: "a"'}, GrammarSpec.lark('start: "a"')),
        ({"temperature": 1.0}, None),
    ],
)
def test_guided(guided, spec):
    assert response_grammar(None, guided) == spec
    assert response_grammar({"type": "text"}, guided) == spec


@pytest.mark.parametrize(
    ("response_format", "guided", "param"),
    [
        ({"type": "yaml"}, {}, "response_format.type"),
        ({}, {}, "response_format.type"),
        ({"type": "json_schema"}, {}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, {}, "response_format.json_schema.schema"),
        (json_schema([1]), {}, "response_format.json_schema.schema"),
        ({"type": "regex"}, {}, "response_format.regex"),
        ({"type": "regex", "regex": 3}, {}, "response_format.regex"),
        ({"type": "choice", "choice": []}, {}, "response_format.choice"),
        (None, {"guided_choice": ["a", 1]}, "guided_choice"),
        (None, {"guided_json": "text"}, "guided_json"),
        (None, {"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"type": "json_object"}, {"guided_regex": "a"}, "guided_regex"),
    ],
)
def test_wrong_demands_name_their_field(response_format, guided, param):
    with pytest.raises(RequestError) as caught:
        response_grammar(response_format, guided)
    assert caught.value.param == param
