"""Server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.errors import HTTPError, http_error, openai_events

DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    """One event with a JSON value."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def named_event(name: str, data: Any) -> bytes:
    """One event with a name and a JSON value."""
    return f"event: {name}\n".encode() + event(data)


class EventStream(Response):
    """An answer that is sent while it is made.

    A client that goes away cancels it; an error on the way becomes a last event.

    Args:
        events: pieces of the body, ready to be sent.
        close: called at the end, however it comes, also if nothing was ever sent.
        error_events: how an error ends the stream.
        param_names: see ``http_error``.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], None],
        error_events: Callable[[HTTPError], bytes] = openai_events,
        param_names: Mapping[str, str] | None = None,
    ):
        # X-Accel-Buffering: nginx would hold events back otherwise.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._error_events = error_events
        self._param_names = param_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until they end, or the client goes away."""
        sending = asyncio.ensure_future(self._send_all(send))
        leaving = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                with contextlib.suppress(OSError):  # the client left while something was sent to it
                    sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._events:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except OSError:
            raise
        except Exception as problem:
            last = self._error_events(http_error(problem, self._param_names))
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
