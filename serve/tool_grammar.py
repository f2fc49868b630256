"""Grammars of tool calls: an answer that follows one is read by the family's parser as calls with valid arguments."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.spec import GrammarSpec
from serve.grammar_schema import arguments_schema
from serve.lark_rules import LarkRules
from serve.tool_parsers.formats import ToolFormat
from serve.xml_grammar import XmlArgumentsGrammar

MAX_CALLS = 32
"""Calls in one answer; a small model could go on for ever."""

_ANY_OBJECT = {"type": "object"}


def required_calls(
    tools: Iterable[dict[str, Any]],
    tool_format: ToolFormat,
    marks: Mapping[str, int],
    *,
    name: str | None = None,
    parallel: bool = True,
) -> GrammarSpec:
    """The answer is a call, and nothing before it: ``tool_choice`` "required", or a named function.

    Args:
        tools: the request's, as chat completions has them.
        tool_format: how the model writes calls.
        marks: ``control_tokens`` of its tokenizer.
        name: the function that must be called, exactly once.
        parallel: several calls are welcome, if the model was trained to write them.

    Raises:
        RequestError: there is no such tool, or a schema that can't be enforced.
    """
    functions = [tool["function"] for tool in tools]
    chosen = [function for function in functions if name in (None, function["name"])]
    if not chosen:
        raise RequestError(
            f"tool_choice names {name!r}, which is not among the tools {[each['name'] for each in functions]}",
            param="tool_choice",
        )
    calls = _Calls(tool_format, marks, {each["name"]: arguments_schema(each.get("parameters")) for each in chosen})
    return calls.rules.spec(calls.block(most=MAX_CALLS if parallel and name is None else 1))


def strict_calls(
    tools: Iterable[dict[str, Any]], tool_format: ToolFormat, marks: Mapping[str, int], *, parallel: bool = True
) -> GrammarSpec:
    """The answer is free text with calls in it, which follow the schemas of the tools that are ``strict``.

    The other tools take any object: they asked for no more.

    Args:
        tools, tool_format, marks: see ``required_calls``.
        parallel: several calls are welcome.

    Raises:
        RequestError: a schema that can't be enforced.
    """
    calls = _Calls(tool_format, marks, _strict_schemas(tools))
    return calls.rules.spec(calls.in_text(several=parallel))


def calls_or_answer(
    tools: Iterable[dict[str, Any]],
    tool_format: ToolFormat,
    marks: Mapping[str, int],
    answer: GrammarSpec,
    *,
    parallel: bool = True,
) -> GrammarSpec:
    """The answer is calls alone, or follows ``answer``: tools under ``tool_choice`` "auto" beside a ``response_format``.

    Args:
        tools, tool_format, marks, parallel: see ``strict_calls``.
        answer: the grammar of the ``response_format``.

    Raises:
        RequestError: a schema that can't be enforced, or a Lark grammar for an answer.
    """
    calls = _Calls(tool_format, marks, _strict_schemas(tools))
    block = calls.rules.rule(calls.marked_block(most=MAX_CALLS if parallel else 1))
    return calls.rules.spec(f"{block} | {calls.rules.answer(answer)}")


def _strict_schemas(tools: Iterable[dict[str, Any]]) -> dict[str, dict]:
    functions = [tool["function"] for tool in tools]
    return {
        each["name"]: arguments_schema(each.get("parameters")) if each.get("strict") else _ANY_OBJECT
        for each in functions
    }


class _Calls:
    """Writes the rules of calls in one format."""

    def __init__(self, tool_format: ToolFormat, marks: Mapping[str, int], schemas: dict[str, dict]):
        self.format = tool_format
        self.rules = LarkRules(marks)
        self._arguments = {name: self._arguments_of(schema) for name, schema in schemas.items()}

    def block(self, most: int, without: str = "") -> str:
        """Terms for everything from ``begin`` to ``end``.

        Args:
            most: calls in it.
            without: the first characters, which are written already.
        """
        form = self.format
        begin, first = form.begin[len(without) :], self._call(without[len(form.begin) :])
        more = ""
        if most > 1 and form.parallel:
            following = self.rules.rule(f"{self.rules.text(form.separator)} {self._call()}")
            more = f"{following}{{0,{most - 1}}}"
        return " ".join(filter(None, (self.rules.text(begin), first, more, self.rules.text(form.end))))

    def marked_block(self, most: int) -> str:
        """A block that begins with a mark, also in a format that can do without: bare JSON could be the answer itself."""
        bare = not (self.format.begin + self.format.call_begin)
        return f"{self.rules.text(self.format.triggers[0]) if bare else ''} {self.block(most)}".strip()

    def in_text(self, several: bool) -> str:
        """Terms for free text with blocks of calls in it."""
        opening = self.format.begin + self.format.call_begin
        free = self.rules.free_text(*self.format.triggers)
        most = MAX_CALLS if several else 1
        if not opening:
            return self._bare_or_text(free, most)
        trigger = next(trigger for trigger in self.format.triggers if opening.startswith(trigger))
        call = self.rules.rule(f"{self.rules.until(free, trigger)} {self.block(most, without=trigger)}")
        return f"{call}* {self.rules.terminal(free)}" if several else f"{call} | {self.rules.terminal(free)}"

    def _bare_or_text(self, free: str, most: int) -> str:
        """A call with no mark in front is one where the answer begins with it, so text must not."""
        block = self.rules.rule(self.block(most))
        tags = " | ".join(map(self.rules.text, self.format.triggers))
        text = self.rules.terminal(rf"{free} & ~/[ \t\n\r;]*\{{(?s:.*)/")
        return f"({tags})? {block} | {text}"

    def _call(self, without: str = "") -> str:
        """A rule for one call, of any tool; ``without`` the first characters."""
        form, ways = self.format, []
        for name, arguments in self._arguments.items():
            match form.style:
                case "json":
                    head = f"{{{json.dumps(form.name_key)}: {json.dumps(name)}, {json.dumps(form.arguments_key)}: "
                    tail = "}" + form.call_end
                case _:
                    head, tail = f"{name}{form.name_end}", form.call_end
            opening = self.rules.text((form.call_begin + head)[len(without) :])
            ways.append(" ".join(filter(None, (opening, arguments, self.rules.text(tail)))))
        return self.rules.rule(*ways)

    def _arguments_of(self, schema: dict) -> str:
        if self.format.style == "xml":
            return XmlArgumentsGrammar(self.rules, self.format, schema).terms()
        return self.rules.json(schema)
