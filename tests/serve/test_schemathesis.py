"""The server against requests that schemathesis makes from its own ``/openapi.json``: none of them is a 5xx.

Every answer must also be one that the description has: its status, its content type, its shape.
"""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.fake_engine import TOOL_TEMPLATE, FakeModel
from support.fake_server import MESSAGES
from support.socket_server import listening

from serve.openapi import describe
from serve.options import ServerOptions
from serve.routes import ENDPOINTS

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NAME = "fake"
KNOWN = {"model": NAME, "messages": MESSAGES, "tokens": [1, 2]}
"""What a generator can't guess: with these values, a request with odd options reaches the engine."""
ODD_OPTIONS = 4
schema = schemathesis.openapi.from_dict(describe(ENDPOINTS))
OPERATIONS = [(endpoint.path.replace(":path}", "}"), endpoint.method) for endpoint in ENDPOINTS]


@pytest.fixture(scope="module")
def answers():
    """How often each path gave each status."""
    return Counter()


@pytest.fixture(scope="module")
def server():
    model = FakeModel(lambda request, index: "word", template=TOOL_TEMPLATE, name=NAME)
    with listening(model, ServerOptions(max_queue=10_000)) as address:
        yield address


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_fails_the_server(path, method, server, answers):
    @settings(
        max_examples=30,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schema[path][method].as_strategy())
    def check(case):
        def status() -> int:
            status = case.call_and_validate(base_url=server, checks=CHECKS).status_code
            answers[path, status] += 1
            return status

        if status() == 200 or not isinstance(case.body, dict):
            return
        known = {name: value for name, value in KNOWN.items() if name in case.body}
        whole = case.body
        case.body = {**whole, **known}
        if status() == 200:
            return
        # One odd option at a time: of many at once there is nearly always one that a request can't have.
        for name in [name for name in whole if name not in known][:ODD_OPTIONS]:
            case.body = {**known, name: whole[name]}
            status()

    check()


def test_the_requests_went_through_the_whole_server(answers):
    paths = {path for path, _ in answers}
    assert paths == {path for path, _ in OPERATIONS}
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/embeddings"):
        assert answers[path, 200] > 0, answers
        assert answers[path, 400] > 0, answers
