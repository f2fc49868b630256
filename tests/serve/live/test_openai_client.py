"""The real OpenAI client against a real server process on the demo model."""

import json
import math

import jsonschema
import pytest
from openai import BadRequestError, NotFoundError

pytestmark = pytest.mark.demo

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SUM = [{"role": "user", "content": "Add 3 and 5."}]
NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 999}, "b": {"type": "integer", "maximum": 999}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": NUMBERS}} for name in ("add", "mul")]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 10**8}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def test_health_told_how_far_it_was(server):
    kinds = [status.split()[0] for status in server.statuses]
    assert kinds == sorted(kinds, key=["loading", "compiling"].index)
    steps = [status.removeprefix("compiling ") for status in server.statuses if status.startswith("compiling ")]
    assert steps
    counts = [tuple(map(int, step.split("/"))) for step in steps]
    assert counts == sorted(counts)
    assert len({total for _, total in counts}) == 1


def test_models(client, model):
    found = client.models.retrieve(model)
    assert found.id == model
    assert found.object == "model"


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=24, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.choices[0].message.role == "assistant"
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 24


def test_a_stream_says_what_the_whole_answer_says(client, model):
    asked = {"model": model, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert last.choices == []
    assert last.usage == whole.usage
    assert parts[0].choices[0].delta.role == "assistant"
    assert all(part.usage is None for part in parts)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert sum(bool(part.choices[0].delta.content) for part in parts) > 3


def test_the_clients_own_stream_helper(client, model):
    with client.chat.completions.stream(model=model, messages=QUESTION, max_tokens=8, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text
    assert text.startswith("The capital")


def test_completions(client, model):
    answer = client.completions.create(
        model=model, prompt=["1, 2, 3, 4,", "A, B,"], max_tokens=4, temperature=0, echo=True, logprobs=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("1, 2, 3, 4, 5")
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])


def test_streamed_completions(client, model):
    chunks = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices).startswith(" 5")


# Tools ---------------------------------------------------------------------------------------------------------------


def valid_calls(message):
    """The names of the message's calls, whose arguments follow the schema."""
    for call in message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), NUMBERS)
    return [call.function.name for call in message.tool_calls]


def test_tool_choice_none_hides_the_tools(client, model):
    plain = client.chat.completions.create(model=model, messages=SUM, max_tokens=8, temperature=0)
    asked = {"model": model, "messages": SUM, "max_tokens": 8, "temperature": 0, "tools": TOOLS}
    none = client.chat.completions.create(**asked, tool_choice="none")
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.choices[0].message.tool_calls is None


def test_tool_choice_auto_shows_the_tools(client, model):
    plain = client.chat.completions.create(model=model, messages=SUM, max_tokens=8, temperature=0)
    auto = client.chat.completions.create(model=model, messages=SUM, max_tokens=8, temperature=0, tools=TOOLS)
    assert auto.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    assert auto.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert auto.choices[0].message.content or auto.choices[0].message.tool_calls


def test_tool_choice_required_always_calls(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=SUM,
        max_tokens=100,
        seed=1,
        n=2,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
    )
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert set(valid_calls(choice.message)) <= {"add", "mul"}


def test_a_named_tool_is_the_one_called(client, model):
    choice = {"type": "function", "function": {"name": "mul"}}
    answer = client.chat.completions.create(
        model=model, messages=SUM, max_tokens=200, seed=1, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False
    )
    assert valid_calls(answer.choices[0].message) == ["mul"]


def test_streamed_calls_are_the_whole_ones(client, model):
    asked = {"model": model, "messages": SUM, "max_tokens": 200, "temperature": 0, "tools": TOOLS}
    whole = client.chat.completions.create(**asked, tool_choice="required")
    with client.chat.completions.stream(**asked, tool_choice="required") as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion()
    expected = [(call.function.name, call.function.arguments) for call in whole.choices[0].message.tool_calls]
    assert [(c.function.name, c.function.arguments) for c in streamed.choices[0].message.tool_calls] == expected
    assert streamed.choices[0].finish_reason == "tool_calls"
    assert valid_calls(streamed.choices[0].message)


def test_a_result_can_be_sent_back(client, model):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 3, "b": 5}'}}
    messages = [
        *SUM,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "8"},
    ]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=4, tools=TOOLS)
    assert answer.usage.completion_tokens > 0


# Structured output ---------------------------------------------------------------------------------------------------


def test_json_schema(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Name a city."}],
        max_tokens=100,
        seed=3,
        n=3,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}},
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), CITY)


def test_json_object(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": 'Write {"ok": true} as JSON.'}],
        max_tokens=100,
        temperature=0,
        response_format={"type": "json_object"},
        extra_body={"repetition_penalty": 1.1},
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert answer.choices[0].message.content.lstrip().startswith("{")


def test_choice_and_regex_as_extensions(client, model):
    asked = {"model": model, "messages": QUESTION, "max_tokens": 20, "seed": 5}
    choice = client.chat.completions.create(**asked, extra_body={"guided_choice": ["Lyon", "Paris"]})
    assert choice.choices[0].message.content in ("Lyon", "Paris")
    regex = client.chat.completions.create(**asked, extra_body={"guided_regex": "[0-9]{3}-[a-c]{2}"})
    jsonschema.validate(regex.choices[0].message.content, {"pattern": "^[0-9]{3}-[a-c]{2}$"})


def test_a_schema_that_cannot_be_held_is_refused(client, model):
    schema = {"type": "object", "properties": {"a": {"type": "no such type"}}}
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(
            model=model,
            messages=QUESTION,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert refused.value.param.startswith("response_format")


# Options -------------------------------------------------------------------------------------------------------------


def test_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        # Greedy: the chosen token is the likeliest.
        assert entry.top_logprobs[0].token == entry.token
        assert entry.logprob == entry.top_logprobs[0].logprob
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.001


def test_n_answers_that_differ(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Tell me a story."}], n=4, max_tokens=12, seed=7
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens <= 48


def test_n_streams_in_one(client, model):
    chunks = client.chat.completions.create(
        model=model, messages=QUESTION, n=3, max_tokens=6, seed=7, stream=True, temperature=0
    )
    texts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts[0].startswith("The capital")
    assert texts == [texts[0]] * 3


def test_a_stop_text_ends_the_answer_and_is_left_out(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=24, temperature=0, stop=["Par", "never"]
    )
    assert answer.choices[0].message.content == "The capital of France is "
    assert answer.choices[0].finish_reason == "stop"


def test_the_same_seed_gives_the_same_answer(client, model):
    def story(seed):
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=12, seed=seed
        )
        return answer.choices[0].message.content

    assert story(11) == story(11)
    assert len({story(11), story(12), story(13)}) > 1


def test_logit_bias_bans_and_forces(client, model, server):
    asked = {"model": model, "messages": QUESTION, "max_tokens": 3, "temperature": 0, "logprobs": True}
    free = client.chat.completions.create(**asked)
    ids = client.post("/../tokenize", cast_to=object, body={"prompt": "The", "add_special_tokens": False})["tokens"]
    assert len(ids) == 1
    assert free.choices[0].message.content.startswith("The")
    banned = client.chat.completions.create(**asked, logit_bias={str(ids[0]): -100})
    assert not banned.choices[0].message.content.startswith("The")
    forced = client.chat.completions.create(**asked, logit_bias={str(ids[0]): 100})
    assert forced.choices[0].message.content == "TheTheThe"


def test_max_completion_tokens_and_length(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_completion_tokens=3, temperature=0, extra_body={"unknown_field": 1}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


# Errors --------------------------------------------------------------------------------------------------------------


def test_an_unknown_model(client):
    with pytest.raises(NotFoundError) as refused:
        client.chat.completions.create(model="gpt-5", messages=QUESTION)
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": []}, "messages"),
    ],
)
def test_a_wrong_field_is_named(client, model, options, param):
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**{"model": model, "messages": QUESTION, **options})
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context(client, model, stream):
    messages = [{"role": "user", "content": "word " * 2500}]
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=messages, stream=stream)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"
    assert "2048" in refused.value.message
