"""``POST /v1/responses``, and the answers that it stored: ``GET`` and ``DELETE /v1/responses/{id}``."""

import secrets
import time
from typing import Any

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.chat_run import ChatRun, start_chat
from serve.endpoint import Endpoint
from serve.errors import HTTPError
from serve.protocol.responses import Item, ResponsesRequest
from serve.protocol.sampling import PARAM_NAMES
from serve.responses_events import ResponseWriter
from serve.responses_input import chat_request, check_supported, input_messages
from serve.sse import EventStream
from serve.state import ServerState

ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


async def create_response(state: ServerState, http: Request, request: ResponsesRequest) -> Response:
    """Answer a conversation, at once or as a stream."""
    service = state.service
    service.require_model(request.model)
    check_supported(request)
    messages = [*earlier_messages(state, request.previous_response_id), *input_messages(request.input)]
    run = await start_chat(state, chat_request(request, messages), f"resp_{secrets.token_hex(16)}")

    def keep(response: dict[str, Any]) -> None:
        if request.store is not False:
            output = input_messages(ITEMS.validate_python(response["output"], strict=False))
            state.responses.add(response, [*messages, *output])

    writer = ResponseWriter(run, response_head(request, run, service.name), keep)
    if request.stream:
        return EventStream(writer.events(), run.generation.close, writer.failed, param_names=PARAMS)
    try:
        return JSONResponse(await writer.whole())
    finally:
        run.generation.close()


async def get_response(state: ServerState, http: Request, body: None) -> Response:
    """A stored answer."""
    if http.query_params.get("stream") == "true":
        raise HTTPError(400, "a stored response can't be streamed again; leave out stream", param="stream")
    response_id = http.path_params["id"]
    stored = state.responses.get(response_id)
    if stored is None:
        raise not_stored(response_id, 404)
    return JSONResponse(stored.response)


async def delete_response(state: ServerState, http: Request, body: None) -> Response:
    """Forget a stored answer."""
    response_id = http.path_params["id"]
    if not state.responses.remove(response_id):
        raise not_stored(response_id, 404)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def earlier_messages(state: ServerState, response_id: str | None) -> list[dict[str, Any]]:
    """The conversation that the request goes on with.

    Raises:
        HTTPError: 400, it is not stored.
    """
    if response_id is None:
        return []
    stored = state.responses.get(response_id)
    if stored is None:
        raise not_stored(response_id, 400)
    return stored.messages


def not_stored(response_id: str, status: int) -> HTTPError:
    """The error for an answer that is not there."""
    return HTTPError(
        status,
        f"no response {response_id[:80]!r} is stored; the server keeps the latest ones in memory, unless store is false",
        param="previous_response_id" if status == 400 else "id",
        code="previous_response_not_found" if status == 400 else "not_found",
    )


def response_head(request: ResponsesRequest, run: ChatRun, model: str) -> dict[str, Any]:
    """The response object without status, output and usage."""
    choice = request.tool_choice
    tools = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": bool(tool.strict),
        }
        for tool in request.tools or ()
    ]
    return {
        "id": run.id,
        "object": "response",
        "created_at": int(time.time()),
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": model,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": run.config.temperature,
        "text": {"format": (request.text.format if request.text else None) or {"type": "text"}},
        "tool_choice": (choice or "auto") if choice is None or isinstance(choice, str) else choice.model_dump(),
        "tools": tools,
        "top_logprobs": 0,
        "top_p": run.config.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


PARAMS = {
    **PARAM_NAMES,
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_new_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.type": "text.format.type",
    "response_format.json_schema.schema": "text.format.schema",
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "model", "output", "usage", "error", "incomplete_details"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "created_at": {"type": "integer"},
        "status": {"enum": ["completed", "incomplete"]},
        "model": {"type": "string"},
        "output": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "type", "status"],
                "properties": {
                    "id": {"type": "string"},
                    "type": {"enum": ["message", "reasoning", "function_call"]},
                    "status": {"enum": ["completed", "incomplete"]},
                },
            },
        },
        "usage": {
            "type": "object",
            "required": ["input_tokens", "output_tokens", "total_tokens"],
            "properties": {
                "input_tokens": {"type": "integer"},
                "input_tokens_details": {"type": "object"},
                "output_tokens": {"type": "integer"},
                "output_tokens_details": {"type": "object"},
                "total_tokens": {"type": "integer"},
            },
        },
        "error": {"type": "null"},
        "incomplete_details": {"type": ["object", "null"]},
    },
}
DELETED: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "deleted"],
    "properties": {"id": {"type": "string"}, "object": {"const": "response"}, "deleted": {"const": True}},
}
ENDPOINTS = (
    Endpoint(
        "/v1/responses",
        "POST",
        create_response,
        "Answer a conversation (responses API)",
        body=ResponsesRequest,
        answer=ANSWER,
        streams=True,
        param_names=PARAMS,
    ),
    Endpoint("/v1/responses/{id}", "GET", get_response, "Get a stored response", answer=ANSWER, needs_model=False),
    Endpoint(
        "/v1/responses/{id}", "DELETE", delete_response, "Forget a stored response", answer=DELETED, needs_model=False
    ),
)
