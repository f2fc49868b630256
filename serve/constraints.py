"""From what a request demands of its answer to a constraint that the engine enforces."""

import asyncio
from collections.abc import Callable

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.request import Constraint
from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.spec import GrammarSpec
from jaxdeploy.grammar.thinking_tags import ThinkingTags
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
        RequestError: a grammar is unsupported, or two formats are demanded; ``param`` names the field.
    """

    def make() -> ConstraintFactory | None:
        demand = chat_grammar(request, prompt, service)
        if demand is None:
            return None
        tags = ThinkingTags(inside=prompt.inside_thinking) if service.thinks else None
        return service.compile_grammar(*demand, tags)

    return await asyncio.to_thread(make) if demands_something(request) else None


async def completion_constraint(request: GuidedFields, service: Service) -> ConstraintFactory | None:
    """What ``response_format`` holds each answer of a text completion to.

    Raises:
        RequestError: the grammar is unsupported.
    """

    def make() -> ConstraintFactory | None:
        answer = response_grammar(request.response_format, request.guided())
        return None if answer is None else service.compile_grammar(answer, "response_format")

    return await asyncio.to_thread(make) if request.demands_format else None


def check_ends(config: GenerationConfig, constraint: ConstraintFactory | None) -> None:
    """A grammar says where an answer ends; refuse options that would have it go on where no token may come.

    Raises:
        RequestError: ``ignore_eos`` or ``min_new_tokens`` beside a grammar.
    """
    for param, value in {"ignore_eos": config.ignore_eos, "min_new_tokens": config.min_new_tokens}.items():
        if constraint is not None and value:
            raise RequestError(
                f"{value!r} can't be kept: the grammar of this answer says where it ends; leave it out", param
            )


def demands_something(request: ChatCompletionRequest) -> bool:
    """Whether there may be a grammar; most requests have none and need no other thread."""
    return bool(request.tools) or request.demands_format


def chat_grammar(
    request: ChatCompletionRequest, prompt: ChatPrompt, service: Service
) -> tuple[GrammarSpec, str] | None:
    """The grammar of an answer, and the request's field that it comes from; None if the answer may be anything.

    Forced calls leave no room for an answer, so they come before a ``response_format``.

    Raises:
        RequestError: a schema can't be enforced.
    """
    answer = response_grammar(request.response_format, request.guided())
    if not prompt.tools or service.tool_format is None:
        return None if answer is None else (answer, "response_format")
    tools, form, marks = prompt.tools, service.tool_format, service.control_tokens
    parallel = request.parallel_tool_calls is not False
    if request.tool_mode in ("required", "named"):
        return required_calls(tools, form, marks, name=request.forced_tool, parallel=parallel), "tools"
    if answer is not None:
        return calls_or_answer(tools, form, marks, answer, parallel=parallel), "response_format"
    if any(tool.function.strict for tool in request.tools or ()):
        return strict_calls(tools, form, marks, parallel=parallel), "tools"
    return None
