"""What an answer must look like, as a value: comparable, hashable, independent of any tokenizer."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""White space in JSON: one space after a comma or a colon, or none (llguidance's ``x-guidance`` options).

Where JSON's own rule holds (any white space between tokens), a small model can write newlines for ever."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A grammar in one of the notations that llguidance knows.

    Attributes:
        kind: how ``source`` is written.
        source: a JSON Schema as JSON, a regular expression (Rust's syntax), a JSON list of strings, or a grammar in
            llguidance's dialect of Lark; empty for ``json_object``.
    """

    kind: GrammarKind
    source: str

    @classmethod
    def json_schema(cls, schema: dict | bool) -> "GrammarSpec":
        """JSON that the schema (draft 2020-12) accepts; the order of its properties is the order in the answer."""
        if isinstance(schema, bool):  # llguidance takes objects only
            schema = {} if schema else {"enum": []}
        return cls("json_schema", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def json_object(cls) -> "GrammarSpec":
        """Any JSON object."""
        return cls("json_object", "")

    @classmethod
    def regex(cls, pattern: str) -> "GrammarSpec":
        """Text that the pattern matches from beginning to end."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Iterable[str]) -> "GrammarSpec":
        """One of these texts."""
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))

    @classmethod
    def lark(cls, grammar: str) -> "GrammarSpec":
        """Text that the rule ``start`` derives."""
        return cls("lark", grammar)


def lark_text(text: str) -> str:
    """A text as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def lark_json(schema: dict) -> str:
    """A Lark term for the JSON that a schema accepts, white space as everywhere else."""
    return "%json " + json.dumps({**schema, "x-guidance": JSON_STYLE}, ensure_ascii=False)
