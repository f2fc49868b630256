"""From what a request demands of its answer to a constraint that the engine enforces."""

import asyncio
from collections.abc import Callable

from jaxdeploy.engine.request import Constraint
from jaxdeploy.grammar.spec import GrammarSpec
from jaxdeploy.grammar.thinking import ThinkingTags
from serve.chat_prompt import ChatPrompt
from serve.protocol.chat import ChatCompletionRequest
from serve.protocol.tools import GuidedFields
from serve.response_format import response_grammar
from serve.service import Service
from serve.tool_grammar import calls_or_answer, required_calls, strict_calls

ConstraintFactory = Callable[[], Constraint]


async def chat_constraint(
    request: ChatCompletionRequest, prompt: ChatPrompt, service: Service
) -> ConstraintFactory | None:
    """What ``tool_choice``, strict tools or ``response_format`` hold each answer to; None leaves answers free.

    Grammars are made and compiled on a worker thread: neither the event loop nor the engine waits.

    Raises:
        RequestError: a grammar is unsupported, or demands contradict each other; ``param`` names the field.
    """

    def make() -> ConstraintFactory | None:
        answer = response_grammar(request.response_format, request.guided())
        calls = tool_calls_grammar(request, prompt, service, answer)
        tags = ThinkingTags(inside=prompt.inside_thinking) if service.thinks else None
        if calls is not None:
            return service.compile_grammar(calls, "tools", tags)
        return None if answer is None else service.compile_grammar(answer, "response_format", tags)

    return await asyncio.to_thread(make) if demands_something(request) else None


async def completion_constraint(request: GuidedFields, service: Service) -> ConstraintFactory | None:
    """What ``response_format`` holds each answer of a text completion to.

    Raises:
        RequestError: the grammar is unsupported.
    """

    def make() -> ConstraintFactory | None:
        answer = response_grammar(request.response_format, request.guided())
        return None if answer is None else service.compile_grammar(answer, "response_format")

    return await asyncio.to_thread(make) if request.response_format or request.guided() else None


def demands_something(request: ChatCompletionRequest) -> bool:
    """Whether there may be a grammar; most requests have none and need no other thread."""
    return bool(request.tools or request.response_format or request.guided())


def tool_calls_grammar(
    request: ChatCompletionRequest, prompt: ChatPrompt, service: Service, answer: GrammarSpec | None
) -> GrammarSpec | None:
    """The grammar of the tool calls that are demanded; None if none are.

    Args:
        answer: what an answer without calls is held to, where the model may choose.

    Raises:
        RequestError: a tool's schema can't be enforced.
    """
    if not prompt.tools or service.tool_format is None:
        return None
    parallel = request.parallel_tool_calls is not False
    marks = service.control_tokens
    if request.tool_mode in ("required", "named"):
        return required_calls(prompt.tools, service.tool_format, marks, name=request.forced_tool, parallel=parallel)
    if answer is not None:
        return calls_or_answer(prompt.tools, service.tool_format, marks, answer, parallel=parallel)
    if any(tool.function.strict for tool in request.tools or ()):
        return strict_calls(prompt.tools, service.tool_format, marks, parallel=parallel)
    return None
