"""The promise of constrained decoding, with a real model: what ends by itself is valid, what is cut off says so.

The demo model (135M parameters) is far too small to call tools or to write JSON reliably; the grammar makes it.
JAXDEPLOY_GENERATIONS=200 makes the long run (several minutes on two cores); the default is a sample of it.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from starlette.testclient import TestClient
from support.fake_server import serving
from support.json_schemas import object_schemas, tools

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.loading import load_engine
from serve.options import ServerOptions

pytestmark = pytest.mark.demo

GENERATIONS = int(os.environ.get("JAXDEPLOY_GENERATIONS", "24"))
AT_ONCE = 8
MAX_TOKENS = 128
MOST_CUT = 0.1


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    options = EngineConfig(session_len=1024, max_batch_size=AT_ONCE, cache_max_entry_count=AT_ONCE * 8)
    model = load_engine(None, options)
    with serving(model, ServerOptions(tool_call_parser="hermes")) as client:
        yield client


def drawn(strategy: SearchStrategy, count: int) -> list[Any]:
    """``count`` examples, the same in every run."""
    examples: list[Any] = []

    @seed(20260801)
    @settings(max_examples=count, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example: Any) -> None:
        examples.append(example)

    collect()
    assert len(examples) >= count
    return examples[:count]


def choices(client: TestClient, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of as many requests, ``AT_ONCE`` of them together."""

    def ask(numbered: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        number, body = numbered
        sampling = {"temperature": 1.0, "seed": number, "max_tokens": MAX_TOKENS}
        answer = client.post("/v1/chat/completions", json={**sampling, **body})
        assert answer.status_code == 200, (answer.text, body)
        return answer.json()["choices"][0]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, enumerate(bodies)))


def assert_few_cut(reasons: Counter[str], ended: str) -> None:
    """Nearly all answers ended by themselves, the others were cut by the token limit; nothing else happened."""
    print(dict(reasons))
    assert set(reasons) <= {ended, "length"}
    assert sum(reasons.values()) == GENERATIONS
    assert reasons["length"] < MOST_CUT * GENERATIONS


def test_required_tool_calls_validate(client):
    requests = drawn(tools(most=2), GENERATIONS)
    ask = [{"role": "user", "content": "Use a tool. Fill in something short."}]
    bodies = [
        {"messages": ask, "tools": each, "tool_choice": "required", "parallel_tool_calls": number % 4 == 0}
        for number, each in enumerate(requests)
    ]
    answers = choices(client, bodies)
    for each, body, answer in zip(requests, bodies, answers, strict=True):
        if answer["finish_reason"] == "length":
            continue
        message = answer["message"]
        assert not message["content"]
        assert message["tool_calls"]
        assert body["parallel_tool_calls"] or len(message["tool_calls"]) == 1
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in each}
        for call in message["tool_calls"]:
            function = call["function"]
            jsonschema.validate(json.loads(function["arguments"]), schemas[function["name"]])
    assert_few_cut(Counter(answer["finish_reason"] for answer in answers), ended="tool_calls")


def test_json_schema_answers_validate(client):
    schemas = drawn(object_schemas(), GENERATIONS)
    ask = [{"role": "user", "content": "Make up a short record in JSON."}]
    formats = [{"type": "json_schema", "json_schema": {"name": "record", "schema": schema}} for schema in schemas]
    answers = choices(client, [{"messages": ask, "response_format": each} for each in formats])
    for schema, answer in zip(schemas, answers, strict=True):
        if answer["finish_reason"] == "stop":
            jsonschema.validate(json.loads(answer["message"]["content"]), schema)
    assert_few_cut(Counter(answer["finish_reason"] for answer in answers), ended="stop")
