import asyncio

import pytest
from support.fake_engine import FakeModel
from support.fake_server import MESSAGES, Connection, ready_state, serving

from serve import error_response
from serve.app import create_app
from serve.options import ServerOptions

URL = "/v1/chat/completions"


def model():
    return FakeModel(lambda request, index: "x")


def test_a_long_body_is_refused_by_its_header_alone():
    async def scenario():
        async with ready_state(model()) as state:
            connection = Connection(create_app(state), URL, headers={"content-length": str(100 * 2**20)})
            await connection.until(b"request_too_large")
            connection.leave()
            await connection.task
            assert connection.status == 413
            assert connection.headers["connection"] == "close"

    asyncio.run(scenario())


def test_a_long_body_without_a_length_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(error_response, "LINGER_BYTES", 3000)

    async def scenario():
        async with ready_state(model(), ServerOptions(max_body_bytes=5000)) as state:
            connection = Connection(create_app(state), URL)
            for _ in range(100):
                connection.send(b"x" * 1000, more=True)
            await connection.task
            assert connection.status == 413
            assert connection.unread() > 85

    asyncio.run(scenario())


def test_a_client_that_waits_for_100_continue_is_not_asked_for_its_body():
    async def scenario():
        async with ready_state(model()) as state:
            headers = {"content-length": str(100 * 2**20), "expect": "100-continue"}
            connection = Connection(create_app(state), URL, headers=headers)
            connection.send(b"x")
            await connection.task
            assert connection.status == 413
            assert connection.unread() == 1

    asyncio.run(scenario())


def test_half_a_body_times_out(monkeypatch):
    monkeypatch.setattr(error_response, "LINGER_SECONDS", 0.01)

    async def scenario():
        async with ready_state(model(), ServerOptions(body_seconds=0.05)) as state:
            connection = Connection(create_app(state), URL)
            connection.send(b'{"messages": ', more=True)
            await connection.task
            assert connection.status == 408
            again = Connection(create_app(state), URL)
            again.send_json({"messages": MESSAGES})
            await again.task
            assert again.status == 200

    asyncio.run(scenario())


def test_a_client_that_leaves_while_it_sends():
    async def scenario():
        async with ready_state(model()) as state:
            connection = Connection(create_app(state), URL)
            connection.send(b'{"messages": ', more=True)
            connection.leave()
            await connection.task
            assert state.in_flight == 0

    asyncio.run(scenario())


def test_a_body_in_pieces():
    async def scenario():
        async with ready_state(model()) as state:
            connection = Connection(create_app(state), URL)
            for piece in (b'{"messages": [{"role": "us', b'er", "content": "', b'Hi"}]}'):
                connection.send(piece, more=True)
            connection.send(b"")
            await connection.task
            assert connection.status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [100, 400_000])
def test_errors_show_little_of_a_wrong_value(size):
    with serving(model()) as client:
        answer = client.post(URL, json={"messages": MESSAGES, "temperature": "x" * size})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temperature"
    assert len(answer.content) < 500
