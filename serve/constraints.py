"""From what a request demands of its answer to a grammar that the engine enforces."""

import asyncio
from collections.abc import Callable
from typing import Any

from jaxdeploy.engine.request import Constraint
from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.spec import GrammarSpec
from serve.chat_prompt import ChatPrompt
from serve.protocol.chat import ChatCompletionRequest
from serve.protocol.tools import ResponseFormat
from serve.service import Service
from serve.tool_schema import normalize_schema

ConstraintFactory = Callable[[], Constraint]


async def constraint_for(
    request: ChatCompletionRequest, prompt: ChatPrompt, service: Service
) -> ConstraintFactory | None:
    """What ``tool_choice``, strict tools or ``response_format`` hold each answer to; None leaves answers free.

    Grammars are compiled on a worker thread: neither the event loop nor the engine waits.

    Raises:
        RequestError: the grammar is unsupported, or a forced tool doesn't exist; ``param`` names the field.
    """
    chosen = tool_spec(request, prompt, service)
    if chosen is None and request.response_format is not None:
        chosen = response_spec(request.response_format), "response_format"
    if chosen is None:
        return None
    spec, param = chosen
    if spec is None:
        return None
    return await asyncio.to_thread(service.compile_grammar, spec, param, prompt.inside_thinking)


def tool_spec(
    request: ChatCompletionRequest, prompt: ChatPrompt, service: Service
) -> tuple[GrammarSpec | None, str] | None:
    """The grammar of the tool calls that are demanded, and the field that demands them; None if none are."""
    mode = request.tool_mode
    strict = any(tool.function.strict for tool in request.tools or ())
    if not prompt.tools or service.tool_format is None or not (mode in ("required", "named") or strict):
        return None
    from serve.tool_grammar import tool_grammar

    return tool_grammar(
        prompt.tools,
        service.tool_format,
        tool_choice=request.forced_tool or mode,
        parallel=request.parallel_tool_calls is not False,
    ), "tools"


def response_spec(wanted: ResponseFormat) -> GrammarSpec | None:
    """The grammar of a ``response_format``; None for plain text.

    Raises:
        RequestError: the field that the format's type needs is missing.
    """
    match wanted.type:
        case "text":
            return None
        case "json_object":
            return GrammarSpec.json_object()
        case "json_schema":
            schema = _needed(wanted.json_schema, "json_schema").schema_
            param = "response_format.json_schema.schema"
            normalized = normalize_schema(_needed(schema, "json_schema.schema"), param)
            assert isinstance(normalized, dict | bool)
            return GrammarSpec.json_schema(normalized)
        case "regex" | "regex_schema":
            return GrammarSpec.regex(_needed(wanted.regex or wanted.regex_schema, wanted.type))
        case "choice":
            return GrammarSpec.choice(_needed(wanted.choice, "choice"))
        case "lark" | "grammar":
            return GrammarSpec.lark(_needed(wanted.lark or wanted.grammar, wanted.type))


def _needed(value: Any, name: str) -> Any:
    if value is None:
        raise RequestError(f"response_format.{name} is missing", param=f"response_format.{name}")
    return value
