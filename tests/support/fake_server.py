"""The server's application around a fake model, driven without a network."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.testclient import TestClient
from support.fake_engine import FakeModel

from serve.app import create_app
from serve.options import ServerOptions
from serve.service import make_service
from serve.state import ServerState

MESSAGES = [{"role": "user", "content": "Hi"}]


@asynccontextmanager
async def ready_state(model: FakeModel, options: ServerOptions | None = None) -> AsyncIterator[ServerState]:
    """The state of a server that is ready; use it on the loop that runs the application."""
    state = ServerState(options)
    state.set_ready(make_service(model, state.options, state.metrics))
    try:
        yield state
    finally:
        model.close()


@contextmanager
def serving(model: FakeModel, options: ServerOptions | None = None) -> Iterator[TestClient]:
    """A client of a server with this model."""
    state = ServerState(options)
    app = create_app(state)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.portal is not None
        client.portal.call(_set_ready, state, model)
        try:
            yield client
        finally:
            model.close()


async def _set_ready(state: ServerState, model: FakeModel) -> None:
    state.set_ready(make_service(model, state.options, state.metrics))


def events(body: str) -> list[Any]:
    """The JSON values of an event stream, and "[DONE]" as it stands."""
    assert body.endswith("\n\n")
    values = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        data = block.removeprefix("data: ")
        values.append(data if data == "[DONE]" else json.loads(data))
    return values


class Connection:
    """One HTTP request driven by hand, to leave or to stop sending when a test says so.

    Attributes:
        status: once the answer began.
        body: what came so far.
        reads: clear it for a client that takes nothing more.
    """

    def __init__(self, app: Starlette, path: str, *, method: str = "POST", headers: dict[str, str] | None = None):
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._news = asyncio.Condition()
        self.reads = asyncio.Event()
        self.reads.set()
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self.task = asyncio.ensure_future(app(self._scope, self._messages.get, self._receive))

    def send(self, body: bytes, more: bool = False) -> None:
        """Send (a piece of) the body."""
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def send_json(self, value: Any) -> None:
        """Send the whole body."""
        self.send(json.dumps(value).encode())

    def unread(self) -> int:
        """Pieces of the body that the server did not take."""
        return self._messages.qsize()

    def leave(self) -> None:
        """Close the connection."""
        self._messages.put_nowait({"type": "http.disconnect"})

    async def until(self, text: bytes) -> None:
        """Wait until the answer holds ``text``."""
        async with self._news:
            await self._news.wait_for(lambda: text in self.body)

    async def _receive(self, message: Any) -> None:
        await self.reads.wait()
        async with self._news:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                self.body += message.get("body", b"")
            self._news.notify_all()
