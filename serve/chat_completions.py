"""``POST /v1/chat/completions``."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from jaxdeploy.engine.request import TokenLogprobs
from serve.answer_reader import AnswerDelta, AnswerReader
from serve.chat_run import start_chat
from serve.chat_stream import chat_events, finish_reason
from serve.endpoint import Endpoint
from serve.engine_client import Generation
from serve.logprobs import chat_logprobs, visible
from serve.protocol.chat import ChatCompletionRequest
from serve.protocol.sampling import PARAM_NAMES
from serve.reasoning.think import ReasoningDelta
from serve.service import Service
from serve.sse import EventStream
from serve.state import ServerState
from serve.tool_parsers.deltas import CallArguments, CallStart, TextDelta


async def create_chat_completion(state: ServerState, http: HTTPRequest, request: ChatCompletionRequest) -> Response:
    """Answer a conversation, at once or as a stream."""
    service = state.service
    service.require_model(request.model)
    run = await start_chat(state, request, f"chatcmpl-{secrets.token_hex(16)}")
    head = {"id": run.id, "created": int(time.time()), "model": service.name}
    if request.stream:
        events = chat_events(service, request, run, head)
        return EventStream(events, run.generation.close, param_names=PARAMS)
    try:
        choices = await collect(service, run.generation, run.readers, bool(request.logprobs))
    finally:
        run.generation.close()
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": run.usage()})


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
