"""What all endpoints have in common: errors, keys, CORS."""

import pytest
from support.fake_engine import FakeModel
from support.fake_server import MESSAGES, serving

from serve.app import create_app
from serve.errors import openai_body
from serve.options import ServerOptions
from serve.routes import ENDPOINTS

URL = "/v1/chat/completions"


@pytest.fixture
def model():
    return FakeModel(lambda request, index: "x")


@pytest.fixture
def client(model):
    with serving(model) as client:
        yield client


def error_of(answer):
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_unknown_paths_and_methods(client):
    missing, wrong = client.get("/v2/nothing"), client.get(URL)
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"messages": "\xff\xfe"}',
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"{} {}",
    ],
)
def test_bodies_that_are_no_json(client, body):
    answer = client.post(URL, content=body)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"1"])
def test_bodies_that_are_no_object(client, body):
    answer = client.post(URL, content=body)
    assert answer.status_code == 400
    assert "object" in error_of(answer)["message"]


def test_a_lone_surrogate(client):
    answer = client.post(URL, content=b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
    assert answer.status_code == 400
    assert error_of(answer)["type"] == "invalid_request_error"


def test_a_very_long_conversation_is_refused_cleanly(client):
    messages = [{"role": "user", "content": "more"}] * 10_000
    answer = client.post(URL, json={"messages": messages})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")
    assert client.post(URL, json={"messages": MESSAGES}).status_code == 200


def test_the_unforeseen_is_a_500_that_tells_nothing(client, model, caplog):
    model.chat_template = None
    answer = client.post(URL, json={"messages": MESSAGES})
    assert (answer.status_code, error_of(answer)["type"]) == (500, "server_error")
    assert "NoneType" not in answer.text
    assert "NoneType" in caplog.text


def test_the_engines_end_is_a_503(client, model):
    model.runner.fail()
    answer = client.post(URL, json={"messages": MESSAGES})
    assert (answer.status_code, error_of(answer)["code"]) == (503, "engine_unavailable")
    health = client.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "dead"})


KEYED = [endpoint for endpoint in ENDPOINTS if not endpoint.public]


@pytest.mark.parametrize("endpoint", KEYED, ids=lambda endpoint: endpoint.path)
def test_keys_guard_everything_but_health(model, endpoint):
    with serving(model, ServerOptions(api_keys=("one", "two"))) as client:
        path = endpoint.path.replace("{id:path}", "fake")

        def status(headers):
            return client.request(endpoint.method, path, headers=headers, content=b"{}" if endpoint.body else b"")

        nothing, wrong = status({}), status({"authorization": "Bearer three"})
        good = [
            status({"authorization": "Bearer one"}),
            status({"authorization": "bearer two"}),
            status({"x-api-key": "two"}),
        ]
        health = client.get("/health")
    for answer in (nothing, wrong):
        assert answer.status_code == 401
        if endpoint.error_body is openai_body:
            assert error_of(answer)["type"] == "authentication_error"
        else:
            assert set(answer.json()) == {"type", "error"}
    assert all(answer.status_code != 401 for answer in good)
    assert health.status_code == 200


def test_health_is_the_only_endpoint_without_keys():
    assert [endpoint.path for endpoint in ENDPOINTS if endpoint.public] == ["/health"]


def test_any_page_may_call_unless_told_otherwise(model):
    preflight = {"origin": "http://a.example", "access-control-request-method": "POST"}
    with serving(model, ServerOptions(api_keys=("key",))) as client:
        assert client.options(URL, headers=preflight).headers["access-control-allow-origin"] == "*"
        assert client.post(URL, headers=preflight).headers["access-control-allow-origin"] == "*"


def test_only_the_pages_that_are_allowed_may_call(model):
    with serving(model, ServerOptions(allow_origins=("http://b.example",))) as client:
        refused = client.get("/health", headers={"origin": "http://a.example"})
        allowed = client.get("/health", headers={"origin": "http://b.example"})
    assert "access-control-allow-origin" not in refused.headers
    assert allowed.headers["access-control-allow-origin"] == "http://b.example"


def test_models(client):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["fake"]
    assert client.get("/v1/models/fake").json() == listed["data"][0]
    unknown = client.get("/v1/models/other/name")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")


def test_the_page_is_served(client):
    assert client.get("/").headers["content-type"].startswith("text/html")


def test_every_endpoint_has_a_route():
    from serve.state import ServerState

    app = create_app(ServerState())
    assert {endpoint.path for endpoint in ENDPOINTS} <= {route.path for route in app.routes}
