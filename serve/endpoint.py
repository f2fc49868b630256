"""One route of the server: reads the request, calls its handler, turns whatever goes wrong into an answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.body import parse_body, read_body
from serve.error_response import ErrorResponse
from serve.errors import ErrorBody, http_error, openai_body
from serve.state import ServerState

Handler = Callable[[ServerState, Request, Any], Awaitable[Response]]
"""Takes the server's state, the HTTP request and its validated body (None without ``Endpoint.body``)."""
CLIENT_CLOSED = 499
"""nginx's status for a client that went away; nobody gets to see it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """A path and method, and what answers there.

    Attributes:
        path: as in Starlette, ``/v1/models/{id:path}``.
        method: GET, POST or DELETE.
        handler: makes the answer; what it raises becomes an error answer.
        summary: one line for the API description.
        body: model of the JSON body.
        answer: JSON schema of a good answer, for the API description.
        other_answers: OpenAPI's response objects for further statuses.
        streams: a true ``stream`` in the body gets server-sent events.
        needs_model: answer 503 while the model is not ready (or the server is about to stop).
        public: needs no API key.
        error_body: the shape of errors.
        error_schema: JSON schema of that shape; None is OpenAI's.
        param_names: what requests here call fields that errors of the engine name differently.
    """

    path: str
    method: str
    handler: Handler
    summary: str
    body: type[BaseModel] | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    other_answers: dict[str, Any] = field(default_factory=dict)
    content_type: str = "application/json"
    streams: bool = False
    needs_model: bool = True
    public: bool = False
    error_body: ErrorBody = openai_body
    error_schema: dict[str, Any] | None = None
    param_names: Mapping[str, str] = field(default_factory=dict)


class EndpointApp:
    """An endpoint as an ASGI application. A client that goes away cancels the handler, and so its generation."""

    def __init__(self, endpoint: Endpoint, state: ServerState):
        self.endpoint = endpoint
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        counted = self.endpoint.needs_model
        self.state.in_flight += counted
        try:
            response = await self._respond(request)
            self.state.metrics.answered(self.endpoint.path, response.status_code)
            await response(scope, receive, send)
        finally:
            self.state.in_flight -= counted

    async def _respond(self, request: Request) -> Response:
        endpoint = self.endpoint
        try:
            if endpoint.needs_model:
                self.state.require_ready()
            if endpoint.body is None:
                return await endpoint.handler(self.state, request, None)
            options = self.state.options
            raw = await read_body(request, limit=options.max_body_bytes, seconds=options.body_seconds)
            body = await parse_body(endpoint.body, raw)
            return await unless_disconnected(request.receive, endpoint.handler(self.state, request, body))
        except ClientDisconnect:
            log.info("%s %s: the client left", endpoint.method, endpoint.path)
            return Response(status_code=CLIENT_CLOSED)
        except Exception as problem:
            return ErrorResponse(http_error(problem, endpoint.param_names), endpoint.error_body)


async def unless_disconnected[T](receive: Receive, work: Awaitable[T]) -> T:
    """Await ``work``, but cancel it if the client goes away first.

    Raises:
        ClientDisconnect: it did.
    """
    running = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise ClientDisconnect
    finally:
        await _cancelled(running, leaving)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future) -> None:
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    # Also collects what they raise on their way out, which nobody else would.
    await asyncio.gather(*pending, return_exceptions=True)
