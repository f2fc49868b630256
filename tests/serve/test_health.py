import asyncio

import pytest
from starlette.testclient import TestClient
from support.fake_engine import FakeModel
from support.fake_server import MESSAGES, Connection, ready_state, serving

from serve.app import create_app
from serve.routes import ENDPOINTS
from serve.state import ServerState


@pytest.mark.parametrize(
    ("progress", "status"),
    [
        (None, "loading"),
        (("load", 5, 20), "loading 25 %"),
        (("compile", 7, 14), "compiling 7/14"),
    ],
)
def test_before_the_model_is_ready(progress, status):
    state = ServerState()
    if progress:
        state.progress(*progress)
    client = TestClient(create_app(state))
    health = client.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": status})
    for endpoint in ENDPOINTS:
        if endpoint.needs_model:
            path = endpoint.path.replace("{id:path}", "fake")
            answer = client.request(endpoint.method, path)
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            assert status in answer.json()["error"]["message"]
    assert client.get("/metrics").status_code == 200


def test_ready():
    with serving(FakeModel(lambda request, index: "")) as client:
        health = client.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ready"})


def test_draining_finishes_what_runs_and_takes_nothing_new():
    async def scenario():
        model = FakeModel(lambda request, index: "abc")
        model.runner.free.clear()
        async with ready_state(model) as state:
            app = create_app(state)
            running = Connection(app, "/v1/chat/completions")
            running.send_json({"messages": MESSAGES, "stream": True})
            await running.until(b"assistant")
            state.draining = True
            late = Connection(app, "/v1/chat/completions")
            late.send_json({"messages": MESSAGES})
            health = Connection(app, "/health", method="GET")
            health.send(b"")
            await asyncio.gather(late.task, health.task)
            assert late.status == health.status == 503
            assert late.headers["connection"] == "close"
            assert health.body == b'{"status":"draining"}'
            assert state.in_flight == 1
            model.runner.free.set()
            await running.task
            assert running.body.endswith(b"[DONE]\n\n")
            assert state.in_flight == 0

    asyncio.run(scenario())
