"""A Lark grammar in the making."""

import json
import re
from collections.abc import Mapping

from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.spec import GrammarSpec, lark_json, lark_text

ANY_TEXT = "/(?s:.*)/"


def lark_regex(pattern: str) -> str:
    """A regular expression as a term of a terminal."""
    escaped = re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL)
    return "/" + escaped.replace("\n", "\\n") + "/"


class LarkRules:
    """Rules and terminals, numbered as they come, for one tokenizer.

    Args:
        marks: text to id of the tokens that a grammar names by id (``control_tokens``).
    """

    def __init__(self, marks: Mapping[str, int]):
        self.marks = marks
        ways = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
        self._pattern = re.compile(f"({ways})") if ways else re.compile("(?!)")
        self._lines: list[str] = []

    def pieces(self, text: str) -> list[str]:
        """The text, cut around its marks; no piece is empty."""
        return [piece for piece in self._pattern.split(text) if piece]

    def text(self, text: str) -> str:
        """Terms for a fixed text, its marks as tokens."""
        return " ".join(
            f"<[{self.marks[piece]}]>" if piece in self.marks else lark_text(piece) for piece in self.pieces(text)
        )

    def json(self, schema: dict) -> str:
        """A rule for the JSON that a schema accepts."""
        return self.rule(lark_json(schema))

    def rule(self, *ways: str, options: str = "") -> str:
        """Adds a rule that may be written in any of ``ways``; returns its name."""
        return self._add("r", options, ways)

    def terminal(self, expression: str) -> str:
        """Adds a terminal; returns its name."""
        return self._add("T", "", (expression,))

    def free_text(self, *without: str, expression: str = ANY_TEXT) -> str:
        """An expression, for use in a terminal, of the texts of ``expression`` that hold none of ``without``."""
        return " & ".join([expression, *(f"~({ANY_TEXT} {lark_text(tag)} {ANY_TEXT})" for tag in without)])

    def until(self, expression: str, tail: str) -> str:
        """Terms for text of ``expression`` and then the fixed text ``tail``, whose first appearance ends it."""
        first, *_ = self.pieces(tail)
        if first in self.marks:
            return f"{self.terminal(expression)} {self.text(tail)}"
        lazy = self.rule(self.terminal(f"({expression}) {lark_text(first)}"), options="[lazy]")
        return f"{lazy} {self.text(tail[len(first) :])}".rstrip()

    def answer(self, spec: GrammarSpec) -> str:
        """A rule for what another specification allows.

        Raises:
            RequestError: it is a Lark grammar, whose rules could clash with these.
        """
        match spec.kind:
            case "json_schema":
                return self.json(json.loads(spec.source))
            case "json_object":
                return self.json({"type": "object"})
            case "choice":
                return self.rule(*map(lark_text, json.loads(spec.source)))
            case "regex":
                return self.rule(self.terminal(lark_regex(spec.source)))
        raise RequestError(
            "a grammar for the answer can't stand beside tools; set tool_choice", param="response_format"
        )

    def spec(self, start: str) -> GrammarSpec:
        """The whole grammar; ``start`` is what the answer is."""
        return GrammarSpec.lark("\n".join([f"start: {start}", *self._lines]))

    def _add(self, prefix: str, options: str, ways: tuple[str, ...]) -> str:
        name = f"{prefix}{len(self._lines)}"
        self._lines.append(f"{name}{options}: {' | '.join(ways)}")
        return name
