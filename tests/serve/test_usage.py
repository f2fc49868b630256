"""Every API says how many tokens of a prompt were in the prefix cache."""

import json

import pytest
from support.fake_engine import FakeModel
from support.fake_server import events, serving

MESSAGES = [{"role": "user", "content": "Hi"}]
CACHED = 7


@pytest.fixture(scope="module")
def client():
    model = FakeModel(lambda request, index: "abc")
    model.runner.cached_tokens = CACHED
    with serving(model) as http:
        yield http


def last_usage(text: str) -> dict:
    """The usage of a stream's last data line that has one."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    found = [
        event for line in lines if (event := json.loads(line)).get("usage") or event.get("response", {}).get("usage")
    ]
    return found[-1].get("usage") or found[-1]["response"]["usage"]


@pytest.mark.parametrize("n", [1, 3])
def test_chat(client, n):
    body = {"messages": MESSAGES, "n": n}
    found = client.post("/v1/chat/completions", json=body).json()["usage"]
    assert found["prompt_tokens_details"] == {"cached_tokens": CACHED}, "a prompt counts once"
    answer = client.post(
        "/v1/chat/completions", json=body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    *_, last, done = events(answer.text)
    assert done == "[DONE]"
    assert last["usage"] == found


def test_completions_add_up_their_prompts(client):
    body = {"prompt": ["a", "bc"], "n": 2}
    found = client.post("/v1/completions", json=body).json()["usage"]
    assert found["prompt_tokens_details"] == {"cached_tokens": 2 * CACHED}
    answer = client.post("/v1/completions", json=body | {"stream": True, "stream_options": {"include_usage": True}})
    assert last_usage(answer.text) == found


def test_a_completion_that_generates_nothing_finds_nothing(client):
    body = {"prompt": "abc", "max_tokens": 0, "echo": True}
    assert client.post("/v1/completions", json=body).json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_responses(client):
    body = {"input": "Hi"}
    found = client.post("/v1/responses", json=body).json()["usage"]
    assert found["input_tokens_details"]["cached_tokens"] == CACHED
    assert last_usage(client.post("/v1/responses", json=body | {"stream": True}).text) == found


def test_messages(client):
    body = {"messages": MESSAGES, "max_tokens": 20, "model": "fake"}
    found = client.post("/v1/messages", json=body).json()["usage"]
    assert found["cache_read_input_tokens"] == CACHED
    assert found["input_tokens"] > 0
    whole = client.post("/v1/messages/count_tokens", json={"messages": MESSAGES, "model": "fake"}).json()[
        "input_tokens"
    ]
    assert found["input_tokens"] + CACHED == whole
    assert (
        last_usage(client.post("/v1/messages", json=body | {"stream": True}).text)["cache_read_input_tokens"] == CACHED
    )
