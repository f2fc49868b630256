"""``POST /v1/chat/completions``."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.request import Request, TokenLogprobs
from jaxdeploy.errors import RequestError
from serve.answer_reader import AnswerDelta, AnswerReader
from serve.chat_prompt import ChatPrompt, answer_readers, chat_prompt, keeps_special_tokens
from serve.chat_stream import chat_events, finish_reason
from serve.constraints import chat_constraint
from serve.endpoint import Endpoint
from serve.engine_client import Generation
from serve.logprobs import chat_logprobs, visible
from serve.protocol.chat import ChatCompletionRequest
from serve.protocol.sampling import PARAM_NAMES, generation_config
from serve.reasoning.think import ReasoningDelta
from serve.request_log import log_prompt
from serve.service import Service
from serve.sse import EventStream
from serve.state import ServerState
from serve.tool_parsers.deltas import CallArguments, CallStart, TextDelta
from serve.usage import usage


async def create_chat_completion(state: ServerState, http: HTTPRequest, request: ChatCompletionRequest) -> Response:
    """Answer a conversation, at once or as a stream."""
    service = state.service
    service.require_model(request.model)
    check_fields(request)
    prompt = await chat_prompt(
        service,
        request.messages,
        tools=None if request.tool_mode == "none" else request.tool_dicts(),
        template_kwargs=request.chat_template_kwargs,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
    )
    config = chat_config(request, prompt, service)
    constraint = await chat_constraint(request, prompt, service)
    request_id = f"chatcmpl-{secrets.token_hex(16)}"
    log_prompt(state.options, request_id, prompt.text, len(prompt.ids))
    generation = service.client.generate(Request(request_id, prompt.ids, config, constraint))
    readers = answer_readers(
        service,
        prompt,
        config.n,
        one_call=request.parallel_tool_calls is False,
        skip_special_tokens=request.skip_special_tokens is not False,
    )
    head = {"id": request_id, "created": int(time.time()), "model": service.name}
    if request.stream:
        events = chat_events(service, request, generation, readers, head, len(prompt.ids))
        return EventStream(events, generation.close, param_names=PARAMS)
    try:
        choices = await collect(service, generation, readers, bool(request.logprobs))
    finally:
        generation.close()
    counts = usage(
        len(prompt.ids),
        sum(reader.tokens for reader in readers),
        reasoning_tokens=sum(reader.reasoning_tokens for reader in readers),
    )
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": counts})


def check_fields(request: ChatCompletionRequest) -> None:
    """Refuse fields that contradict each other.

    Raises:
        RequestError: they do.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    forced = request.forced_tool
    names = [tool.function.name for tool in request.tools or ()]
    if not names and (forced is not None or request.tool_choice == "required"):
        raise RequestError("tool_choice demands a tool call, but there are no tools", param="tool_choice")
    if forced is not None and forced not in names:
        raise RequestError(f"tool_choice names {forced!r}, which is not among the tools {names}", param="tool_choice")


def chat_config(request: ChatCompletionRequest, prompt: ChatPrompt, service: Service) -> GenerationConfig:
    """The engine's options for a chat request.

    Raises:
        RequestError: one that can't work.
    """
    skip = request.skip_special_tokens is not False
    return generation_config(
        request,
        service.defaults,
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        skip_special_tokens=skip and not keeps_special_tokens(service, prompt),
        extra_stops=service.stop_words,
    )


async def collect(
    service: Service, generation: Generation, readers: Sequence[AnswerReader], logprobs: bool
) -> list[dict[str, Any]]:
    """``choices`` of an answer that is not streamed.

    Raises:
        EngineError: the engine ended an answer with an error.
    """
    deltas: list[list[AnswerDelta]] = [[] for _ in readers]
    tokens: list[list[TokenLogprobs]] = [[] for _ in readers]
    async for outputs in generation:
        for output in outputs:
            deltas[output.index] += readers[output.index].feed(output)
            tokens[output.index] += output.logprobs
        if all(reader.done for reader in readers):
            break
    return [
        {
            "index": index,
            "message": message(deltas[index]),
            "logprobs": {
                "content": chat_logprobs(service.tokenizer, visible(service.tokenizer, tokens[index])),
                "refusal": None,
            }
            if logprobs
            else None,
            "finish_reason": finish_reason(reader),
        }
        for index, reader in enumerate(readers)
    ]


def message(deltas: Sequence[AnswerDelta]) -> dict[str, Any]:
    """An assistant's message from all its deltas."""
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, CallArguments):
            arguments.setdefault(delta.index, []).append(delta.fragment)
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": "".join(arguments.get(call.index, ()))},
        }
        for call in deltas
        if isinstance(call, CallStart)
    ]
    result: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if reasoning:
        result["reasoning_content"] = reasoning
    if calls:
        result["tool_calls"] = calls
    return result


PARAMS = {**PARAM_NAMES, "prompt": "messages"}
ENDPOINTS = (
    Endpoint(
        "/v1/chat/completions",
        "POST",
        create_chat_completion,
        "Answer a conversation",
        body=ChatCompletionRequest,
        streams=True,
        param_names=PARAMS,
    ),
)
