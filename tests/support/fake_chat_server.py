"""A server that speaks enough of the API for the page: what it streams depends on a word in the question."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.page_routes import routes as page_routes

MARKDOWN = """## Paged attention, briefly

A KV cache that is one long array wastes memory the way a *contiguous* address space does. \
Paged attention cuts it into **fixed pages**, and a block table says where each one lies:

| Operating system | KV cache |
|---|---|
| page | 64 tokens of keys and values |
| page table | block table |
| shared library | shared prompt prefix |

1. A request takes a page when it needs one.
2. Pages are counted, so that two requests may share them:
   - the system prompt is stored `once`
   - the first page that differs is copied

```python
def page_of(position: int, block_table: list[int]) -> tuple[int, int]:
    \"\"\"Where the key of a token lies.\"\"\"
    page, offset = divmod(position, 64)  # 64 tokens a page
    return block_table[page], offset
```

> Nothing is moved when a request ends; its pages go back to the free list.

See [the paper](https://arxiv.org/abs/2309.06180) for the numbers."""

HOSTILE = """Hello <script>window.hacked = 1</script> and <img src=x onerror="window.hacked = 2">

[a link](javascript:window.hacked=3) [another](data:text/html,<script>window.hacked=4</script>) ![picture](https://example.com/x.png)

| <b>head</b> |
|---|
| <svg onload="window.hacked=5"> |

```html
<script>window.hacked = 6</script>
```

<https://example.com/ok"onmouseover="window.hacked=7>
&lt;script&gt;window.hacked=8&lt;/script&gt;"""

METRICS = """# HELP jaxdeploy_requests_running Answers in the running batch
# TYPE jaxdeploy_requests_running gauge
jaxdeploy_requests_running 3.0
jaxdeploy_requests_waiting 1.0
jaxdeploy_cache_pages 1120.0
jaxdeploy_cache_pages_used 412.0
jaxdeploy_cache_usage_ratio 0.368
jaxdeploy_prefix_cache_queries_total 4000.0
jaxdeploy_prefix_cache_hits_total 2480.0
jaxdeploy_generation_tokens_total 128034.0
jaxdeploy_compile_misses_total 0.0
jaxdeploy_http_requests_total{path="/health",status="200"} 3.0
"""


@dataclass
class FakeChat:
    """What the server was asked and how it should answer.

    Attributes:
        requests: bodies of the chat requests, in order.
        health: the status that /health reports.
        key: if set, everything but the page and /health needs it.
        cancelled: set when a client left a stream.
        metrics_asked: how often /metrics was asked for.
        pause: seconds between the pieces of ordinary answers.
    """

    requests: list[dict[str, Any]] = field(default_factory=list)
    health: str = "ready"
    key: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    metrics_asked: int = 0
    pause: float = 0.0

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                *page_routes,
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ]
        )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": self.health}, status_code=200 if self.health == "ready" else 503)

    async def _models(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse(
            {"object": "list", "data": [{"id": "demo/SmolLM2-135M-Instruct"}]}
        )

    async def _metrics(self, request: Request) -> Response:
        self.metrics_asked += 1
        return self._refusal(request) or PlainTextResponse(METRICS)

    async def _chat(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        body = await request.json()
        self.requests.append(body)
        question = body["messages"][-1]["content"]
        if "too hot" in question:
            return _error(400, "temperature=9 must be between 0 and 2", param="temperature")
        return StreamingResponse(self._stream(body, question), media_type="text/event-stream")

    def _refusal(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("Authorization") == f"Bearer {self.key}":
            return None
        return _error(401, "no API key was given", kind="authentication_error", code="invalid_api_key")

    async def _stream(self, body: dict[str, Any], question: str) -> AsyncIterator[str]:
        deltas = list(_deltas(body, question))
        ended = False
        try:
            for delta in deltas:
                await asyncio.sleep(0.02 if "slow" in question else self.pause)
                yield _event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if "break" in question:
                yield _event(
                    {"error": {"message": "the engine failed", "type": "server_error", "param": None, "code": None}}
                )
            else:
                reason = "tool_calls" if any("tool_calls" in delta for delta in deltas) else "stop"
                yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
                yield _event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(deltas)}})
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.cancelled.set()


def _deltas(body: dict[str, Any], question: str) -> Iterable[dict[str, Any]]:
    """The deltas of an answer."""
    yield {"role": "assistant", "content": ""}
    if body["messages"][-1]["role"] == "tool":
        yield from _texts("The result is **16**.")
    elif body.get("tools") and body.get("tool_choice") != "none":
        yield from _calls()
    elif "slow" in question:
        yield from ({"content": f"word{count} "} for count in range(3000))
    elif "hostile" in question:
        yield from _texts(HOSTILE)
    elif "think" in question:
        yield from ({"reasoning_content": piece} for piece in ("Let me ", "consider."))
        yield from _texts("A considered answer.")
    elif "echo" in question:
        yield from _texts(question)
    else:
        yield from _texts(MARKDOWN)


def _texts(text: str) -> Iterator[dict[str, Any]]:
    return ({"content": text[at : at + 4]} for at in range(0, len(text), 4))


def _calls() -> Iterator[dict[str, Any]]:
    for index, (name, arguments) in enumerate((("add", '{"a": 3, "b": 5}'), ("mul", '{"a": 8, "b": 2}'))):
        head = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        yield {"tool_calls": [head]}
        for at in range(0, len(arguments), 3):
            yield {"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 3]}}]}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _error(
    status: int, message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status_code=status)


@contextmanager
def serving(chat: FakeChat) -> Iterator[str]:
    """Runs the server on a free port in a thread; gives its address."""
    config = uvicorn.Config(
        chat.app(), host="127.0.0.1", port=0, log_level="warning", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()
