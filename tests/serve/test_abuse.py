"""Clients that misbehave, over real sockets: each gets a clean 4xx, and the next request is answered."""

import json
import socket
import time
from urllib.parse import urlsplit

import httpx2
import pytest
from support.fake_engine import FakeModel
from support.fake_server import MESSAGES
from support.socket_server import listening

from serve.options import ServerOptions

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
ENDPOINTS = (CHAT, "/v1/completions", "/tokenize", "/detokenize", "/v1/embeddings")
DEEP = 200_000


@pytest.fixture(scope="module")
def model():
    return FakeModel(lambda request, index: "word " * 4)


@pytest.fixture(scope="module")
def server(model):
    with listening(model, ServerOptions(body_seconds=1.0)) as address:
        yield address


@pytest.fixture
def client(server):
    """Every test ends with a request that is answered, on the same connection if that is still open."""
    with httpx2.Client(base_url=server, timeout=60) as client:
        yield client
        answer = client.post(CHAT, json={"messages": MESSAGES})
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "word " * 4


def connect(server):
    """A bare connection."""
    address = urlsplit(server)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def head(length, path=CHAT):
    """A request's head that announces a body."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


def read_all(connection):
    """What the server sends until it closes the connection."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def assert_refused(answer, status=400):
    assert answer.status_code == status, answer.text[:300]
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    assert len(answer.content) < 2000
    return error


def test_a_half_sent_body(server, client):
    with connect(server) as connection:
        connection.sendall(head(1000) + b'{"messages": [')
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"timeout"' in received.replace(b" ", b"")


def test_a_half_sent_head(server, client):
    with connect(server) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
        assert client.get("/health").status_code == 200


def test_a_client_that_leaves_in_its_body(server, client):
    with connect(server) as connection:
        connection.sendall(head(1000) + b'{"messages": [')


def test_a_hundred_megabytes(server, client):
    error = assert_refused(client.post(CHAT, content=b" " * (100 * 2**20), headers=JSON), 413)
    assert error["code"] == "request_too_large"


def test_a_hundred_megabytes_without_a_length(client):
    assert_refused(client.post(CHAT, content=(b" " * 2**20 for _ in range(100)), headers=JSON), 413)


def test_ten_thousand_messages(client):
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"message {i}"} for i in range(10_000)]
    error = assert_refused(client.post(CHAT, json={"messages": messages}))
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"\xef\xbb\xbf\xc3\x28",
        b"\x00",
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "tokens": [1]}}',
    ],
)
def test_a_body_that_is_no_utf8_or_no_object(client, path, body):
    assert_refused(client.post(path, content=body, headers=JSON))


DEEP_BODIES = {
    "arrays": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "unclosed": b'{"messages":' + b"[" * DEEP,
    "content": b'{"messages": [{"role": "user", "content": ' + b"[" * DEEP + b"]" * DEEP + b"}]}",
    "unknown field": b'{"messages": [{"role": "user", "content": "x"}], "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
}


@pytest.mark.parametrize("kind", DEEP_BODIES)
def test_deep_json(client, kind):
    assert_refused(client.post(CHAT, content=DEEP_BODIES[kind], headers=JSON))


def nested(depth, inner, key="properties"):
    schema = inner
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize("depth", [60, 100])
@pytest.mark.parametrize("where", ["tools", "response_format", "arguments", "chat_template_kwargs"])
def test_deep_but_parsable_json(client, where, depth):
    deep = nested(depth, {"type": "integer"})
    body = {"messages": MESSAGES, "max_tokens": 4}
    if where == "tools":
        body["tools"] = [{"type": "function", "function": {"name": "f", "parameters": deep}}]
        body["tool_choice"] = "required"
    elif where == "response_format":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}
    elif where == "arguments":
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps(deep)}}
        body["messages"] = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]
    else:
        body["chat_template_kwargs"] = {"x": deep}
    answer = client.post(CHAT, json=body)
    if answer.status_code != 200:
        assert_refused(answer)


def test_lone_surrogates(client):
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    assert_refused(client.post(CHAT, content=body, headers=JSON))


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "1." + "0" * 5000])
@pytest.mark.parametrize("name", ["temperature", "max_tokens", "seed", "n", "top_p"])
def test_numbers_without_end(client, name, value):
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "{name}": {value}}}'
    answer = client.post(CHAT, content=body.encode(), headers=JSON)
    if answer.status_code != 200:  # 1.000.. is a temperature
        assert_refused(answer)
        assert value[0] != "1" or "e" in value or name in ("max_tokens", "seed", "n")


def test_what_is_no_http(server, client):
    with connect(server) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_lengths_that_lie(server, client):
    for length in ("-1", "x", "1, 2", "9" * 400):
        with connect(server) as connection:
            connection.sendall(head(length))
            assert read_all(connection).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))


def test_a_reader_that_reads_nothing(server, client, model, monkeypatch):
    """Its answer fills the sockets' buffers and waits in the server; others are served meanwhile."""
    ask = {"messages": MESSAGES, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    body = json.dumps(ask).encode()
    begun = len(model.runner.submitted)
    with connect(server) as slow:
        with monkeypatch.context() as patch:
            patch.setattr(model.runner, "script", lambda request, index: "x" * 1500)
            slow.sendall(head(len(body)) + body)
            while len(model.runner.submitted) == begun:
                time.sleep(0.001)
        while any(answer.request is model.runner.submitted[begun] for answer in model.runner.active):
            assert client.post(CHAT, json={"messages": MESSAGES}).status_code == 200
        # Everything is generated, and this client has read none of it.
        slow.settimeout(0.1)
        assert slow.recv(12) == b"HTTP/1.1 200"
