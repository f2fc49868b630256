"""The other APIs on the same live server: messages by Anthropic's client, responses and embeddings by OpenAI's."""

import json

import jsonschema
import pytest
from anthropic import Anthropic

pytestmark = pytest.mark.demo

GREEDY = {"temperature": 0}  # no parameter of the newest client, but of the API
QUESTION = "What is the capital of France?"
NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 999}, "b": {"type": "integer", "maximum": 999}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def anthropic(server):
    with Anthropic(base_url=server.address, api_key="none", max_retries=0, timeout=300) as client:
        yield client


def test_messages(anthropic, model):
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 24,
        "extra_body": GREEDY,
    }
    whole = anthropic.messages.create(**asked)
    assert whole.stop_reason == "end_turn"
    assert "Paris" in whole.content[0].text
    count = anthropic.messages.count_tokens(model=model, messages=asked["messages"])
    assert count.input_tokens == whole.usage.input_tokens
    with anthropic.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text


def test_messages_with_a_tool(anthropic, model):
    answer = anthropic.messages.create(
        model=model,
        messages=[{"role": "user", "content": "Add 3 and 5."}],
        max_tokens=150,
        extra_body=GREEDY,
        tools=[{"name": "add", "input_schema": NUMBERS}],
        tool_choice={"type": "tool", "name": "add"},
    )
    assert answer.stop_reason == "tool_use"
    (call,) = (block for block in answer.content if block.type == "tool_use")
    assert call.name == "add"
    jsonschema.validate(call.input, NUMBERS)


def test_responses(client, model):
    asked = {"model": model, "input": QUESTION, "max_output_tokens": 24, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.status == "completed"
    assert "Paris" in whole.output_text
    with client.responses.stream(**asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == whole.output_text


def test_responses_with_a_tool(client, model):
    answer = client.responses.create(
        model=model,
        input="Add 3 and 5.",
        max_output_tokens=150,
        temperature=0,
        tools=[{"type": "function", "name": "add", "parameters": NUMBERS}],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (call,) = answer.output
    assert call.name == "add"
    jsonschema.validate(json.loads(call.arguments), NUMBERS)


def test_embeddings(client, model):
    answer = client.embeddings.create(
        model=model, input=["a cat", "a kitten", "tax law of 1913"], encoding_format="float"
    )
    cat, kitten, law = (item.embedding for item in answer.data)
    assert abs(sum(x * x for x in cat) - 1) < 1e-4

    def likeness(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert likeness(cat, kitten) > likeness(cat, law)
    assert client.embeddings.create(model=model, input="a cat").data[0].embedding == pytest.approx(cat, abs=1e-5)
