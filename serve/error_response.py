"""The answer that carries an error."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serve.errors import HTTPError, openai_body

LINGER_SECONDS = 2.0
LINGER_BYTES = 16 * 2**20
"""How much of an unwanted body is read and dropped while the client may still be sending: a connection that is closed at
once can lose the answer on its way (RFC 9112, section 9.6)."""


class ErrorResponse(JSONResponse):
    """An error as JSON.

    Args:
        error: what to say.
        body: makes the JSON object.
    """

    def __init__(self, error: HTTPError, body: Callable[[HTTPError], dict[str, Any]] = openai_body):
        super().__init__(body(error), status_code=error.status, headers=error.headers)
        self._close = error.close
        if error.close:
            self.headers["connection"] = "close"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; if the request's body was not read, stay a little before the connection is closed."""
        if not self._close:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # A client that waits for "100 Continue" sends nothing more; asking for its body would make it start.
        if not any(name == b"expect" for name, _ in scope["headers"]):
            await _drop_body(receive)
        await send({"type": "http.response.body", "body": b""})


async def _drop_body(receive: Receive) -> None:
    end, left = time.monotonic() + LINGER_SECONDS, LINGER_BYTES
    while left > 0 and (seconds := end - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), seconds)
        except TimeoutError:
            return
        left -= len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return
