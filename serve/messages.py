"""``POST /v1/messages`` and ``/v1/messages/count_tokens``, as Anthropic has them."""

import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.anthropic_errors import ERROR_SCHEMA, anthropic_body, anthropic_events
from serve.chat_run import prompt_of, start_chat
from serve.endpoint import Endpoint
from serve.matched_stop import MatchedStop
from serve.messages_events import MessageWriter
from serve.messages_input import chat_request
from serve.protocol.messages import CountTokensRequest, MessagesRequest
from serve.protocol.sampling import PARAM_NAMES
from serve.sse import EventStream
from serve.state import ServerState


async def create_message(state: ServerState, http: Request, request: MessagesRequest) -> Response:
    """Answer a conversation, at once or as a stream."""
    service = state.service
    service.require_model(request.model)
    run = await start_chat(state, chat_request(request), f"msg_{secrets.token_hex(16)}")
    stops = request.stop_sequences
    writer = MessageWriter(run, service.name, MatchedStop(stops, service.stop_words) if stops else None)
    if request.stream:
        return EventStream(writer.events(), run.generation.close, anthropic_events, param_names=PARAMS)
    try:
        return JSONResponse(await writer.whole())
    finally:
        run.generation.close()


async def count_tokens(state: ServerState, http: Request, request: CountTokensRequest) -> Response:
    """How many tokens a conversation has as the model reads it."""
    service = state.service
    service.require_model(request.model)
    prompt = await prompt_of(service, chat_request(request))
    return JSONResponse({"input_tokens": len(prompt.ids)})


PARAMS = {
    **PARAM_NAMES,
    "prompt": "messages",
    "stop_words": "stop_sequences",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema.schema": "output_config.format.schema",
}
USAGE: dict[str, Any] = {
    "type": "object",
    "required": ["input_tokens", "output_tokens"],
    "properties": {
        "input_tokens": {"type": "integer"},
        "output_tokens": {"type": "integer"},
        "cache_creation_input_tokens": {"type": "integer"},
        "cache_read_input_tokens": {"type": "integer"},
        "output_tokens_details": {"type": "object"},
    },
}
BLOCKS: list[dict[str, Any]] = [
    {
        "type": "object",
        "required": ["type", *fields],
        "properties": {"type": {"const": kind}, **{field: {"type": of} for field, of in fields.items()}},
    }
    for kind, fields in (
        ("text", {"text": "string"}),
        ("thinking", {"thinking": "string", "signature": "string"}),
        ("tool_use", {"id": "string", "name": "string", "input": "object"}),
    )
]
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": {"type": "string"},
        "content": {"type": "array", "items": {"oneOf": BLOCKS}},
        "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        "stop_sequence": {"type": ["string", "null"]},
        "usage": USAGE,
    },
}
COUNT: dict[str, Any] = {
    "type": "object",
    "required": ["input_tokens"],
    "properties": {"input_tokens": {"type": "integer"}},
}
ENDPOINTS = (
    Endpoint(
        "/v1/messages",
        "POST",
        create_message,
        "Answer a conversation (Anthropic's API)",
        body=MessagesRequest,
        answer=ANSWER,
        streams=True,
        error_body=anthropic_body,
        error_schema=ERROR_SCHEMA,
        param_names=PARAMS,
    ),
    Endpoint(
        "/v1/messages/count_tokens",
        "POST",
        count_tokens,
        "Count the tokens of a conversation (Anthropic's API)",
        body=CountTokensRequest,
        answer=COUNT,
        error_body=anthropic_body,
        error_schema=ERROR_SCHEMA,
        param_names=PARAMS,
    ),
)
