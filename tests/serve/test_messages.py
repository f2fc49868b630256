import json

import anthropic
import pytest
from anthropic import Anthropic
from support.fake_engine import THINK_TEMPLATE, TOOL_TEMPLATE, FakeModel
from support.fake_server import MESSAGES, serving

from serve.options import ServerOptions

URL = "/v1/messages"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"name": "add", "description": "Adds.", "input_schema": SCHEMA}
SHOWN = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'
# Shows calls and thoughts of earlier turns.
HISTORY_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}{% if m.reasoning_content %} thought:{{ m.reasoning_content }}{% endif %}]"
    "{{ m.content }}{% for c in m.tool_calls %}<{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}>"
    "{% endfor %}{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}{# tools <tool_call> #}"
    "{% if enable_thinking is defined %}thinking={{ enable_thinking }}{% endif %}"
)


def say(text, template=TOOL_TEMPLATE):
    return FakeModel(lambda request, index: text, template=template)


def client_of(http):
    return Anthropic(api_key="none", base_url="http://testserver", http_client=http, max_retries=0)


def ask(model, *, stream=False, options=None, **fields):
    """The message that the client makes of the answer, whole or streamed, and the names of the stream's events."""
    fields = {"model": "fake", "max_tokens": 500, "messages": MESSAGES, **fields}
    with serving(model, options) as http:
        client = client_of(http)
        if not stream:
            return client.messages.create(**fields), None
        with client.messages.stream(**fields) as events:
            raw = [event.type for event in events]
            return events.get_final_message(), raw


def prompt_of(model, number=0):
    return model.tokenizer.decode(model.runner.submitted[number].prompt_ids, skip_special=False)


both = pytest.mark.parametrize("stream", [False, True])


@both
def test_a_plain_answer(stream):
    model = say("Hello, wörld")
    message, _ = ask(model, stream=stream, system="Be kind.")
    assert (message.type, message.role, message.model) == ("message", "assistant", "fake")
    assert message.id.startswith("msg_")
    assert [(block.type, block.text) for block in message.content] == [("text", "Hello, wörld")]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len("Hello, wörld".encode()) + 1
    assert message.usage.input_tokens == len(model.runner.submitted[0].prompt_ids)
    assert prompt_of(model) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_events_come_in_order():
    with serving(say(f"<think>\nHm.\n</think>\n\nSo. {CALL}\n{CALL}", THINK_TEMPLATE)) as http:
        body = {"max_tokens": 500, "messages": MESSAGES, "tools": [ADD], "stream": True}
        text = http.post(URL, json=body).text
    events = []
    for chunk in text.removesuffix("\n\n").split("\n\n"):
        name, data = chunk.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        events.append(value)
    names = [event["type"] for event in events]
    once = [name for i, name in enumerate(names) if name != "content_block_delta" or names[i - 1] != name]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert once == ["message_start", "ping", *block * 4, "message_delta", "message_stop"]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [start["type"] for start in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1, 2, 3]
    deltas = [(event["index"], event["delta"]) for event in events if event["type"] == "content_block_delta"]

    def joined(index, field):
        return "".join(delta[field] for at, delta in deltas if at == index)

    assert joined(0, "thinking") == "Hm."
    assert joined(1, "text") == "So. "
    assert [json.loads(joined(index, "partial_json")) for index in (2, 3)] == [{"a": 3}, {"a": 3}]
    assert starts[2]["id"] != starts[3]["id"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens_details"]["thinking_tokens"] > 0


@both
def test_thinking_text_and_calls(stream):
    message, _ = ask(say(f"<think>\nHm.\n</think>\n\n{CALL}", THINK_TEMPLATE), stream=stream, tools=[ADD])
    thinking, call = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", "Hm.")
    assert (call.type, call.name, call.input) == ("tool_use", "add", {"a": 3})
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens_details.thinking_tokens > 0


@both
def test_an_answer_that_is_cut(stream):
    message, _ = ask(say("abcdef"), stream=stream, max_tokens=3)
    assert (message.content[0].text, message.stop_reason) == ("abc", "max_tokens")


@both
def test_a_call_that_is_cut(stream):
    tokens = len('\n{"name": "add", "arguments": {"a": 3, "b')
    text = CALL.replace('"a": 3', '"a": 3, "b": 4')
    message, _ = ask(say(text), stream=stream, tools=[ADD], max_tokens=1 + tokens)
    assert (message.content[0].name, message.content[0].input) == ("add", {"a": 3})
    assert message.stop_reason == "max_tokens"


@both
@pytest.mark.parametrize(
    ("text", "left", "found"),
    [("one two three", "one two", " th"), ("one two", "one two", None), ("one t", "one t", None)],
)
def test_stop_sequences(stream, text, left, found):
    model = say(text)
    message, _ = ask(model, stream=stream, stop_sequences=["x", " th"])
    assert message.content[0].text == left
    assert message.stop_sequence == found
    assert message.stop_reason == ("end_turn" if found is None else "stop_sequence")


@both
def test_an_answer_of_nothing(stream):
    message, _ = ask(say(" \n"), stream=stream)
    assert (message.content, message.stop_reason) == ([], "end_turn")


def test_options_reach_the_engine():
    model = say("x")
    fields = {"temperature": 0.3, "top_p": 0.9, "top_k": 7, "seed": 5, "unknown": 1}
    ask(model, extra_body=fields, metadata={"user_id": "u"})
    config = model.runner.submitted[0].config
    assert (config.temperature, config.top_p, config.top_k, config.random_seed) == (0.3, 0.9, 7, 5)
    assert config.max_new_tokens == 500


def test_the_model_is_shown_the_tools():
    model = say("x")
    ask(model, tools=[ADD])
    assert prompt_of(model).startswith(f"tools:{json.dumps([SHOWN])}\n")


def test_tool_choice_none_hides_them():
    model = say(CALL)
    message, _ = ask(model, tools=[ADD], tool_choice={"type": "none"})
    assert "tools:" not in prompt_of(model)
    assert message.stop_reason == "end_turn"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
def test_a_demanded_call_is_constrained(choice):
    model = say(CALL)
    message, _ = ask(model, tools=[ADD], tool_choice=choice)
    assert model.runner.submitted[0].constraint is not None
    assert message.stop_reason == "tool_use"


@both
def test_one_call_at_most(stream):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message, _ = ask(say(f"{CALL}\n{CALL}"), stream=stream, tools=[ADD], tool_choice=choice)
    assert [block.type for block in message.content] == ["tool_use"]
    assert message.stop_reason == "tool_use"


def test_a_schema_for_the_answer():
    model = say('{"a": 1}')
    ask(model, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert model.runner.submitted[0].constraint is not None


def test_a_conversation_with_calls():
    model = say("x", HISTORY_TEMPLATE)
    ask(
        model,
        system=[{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
        messages=[
            {"role": "user", "content": "3+5?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Add.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "d"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 3}},
                    {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "8"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": [{"type": "text", "text": "no a"}],
                        "is_error": True,
                    },
                    {"type": "text", "text": "And?"},
                    {"type": "text", "text": "Hurry."},
                ],
            },
            {"role": "user", "content": "Please."},
        ],
        tools=[ADD],
    )
    assert prompt_of(model) == (
        "[system]One.\nTwo.\n[user]3+5?\n"
        '[assistant thought:Add.]Let me see.<t1 add {"a": 3}><t2 add {}>\n'
        "[tool]8\n[tool]Error: no a\n[user]And?\nHurry.\nPlease.\n[assistant]"
    )


def test_the_answer_goes_on_with_a_last_assistant_message():
    model = say("x", HISTORY_TEMPLATE)
    ask(model, messages=[*MESSAGES, {"role": "assistant", "content": "The answer is ("}])
    assert prompt_of(model) == "[user]Hi\n[assistant]The answer is ("


@pytest.mark.parametrize(
    ("thinking", "end"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, "thinking=True"),
        ({"type": "disabled"}, "thinking=False"),
        ({"type": "adaptive"}, "[assistant]"),
    ],
)
def test_thinking_is_the_templates_choice(thinking, end):
    model = say("x", HISTORY_TEMPLATE)
    ask(model, thinking=thinking)
    assert prompt_of(model).endswith(end)


def test_tokens_are_counted_as_the_model_reads_them():
    model = say("x")
    fields = {"model": "fake", "messages": MESSAGES, "system": "Be kind.", "tools": [ADD]}
    with serving(model) as http:
        counted = client_of(http).messages.count_tokens(**fields)
        assert client_of(http).messages.create(**fields, max_tokens=5).usage.input_tokens == counted.input_tokens
    assert counted.input_tokens == len(model.runner.submitted[0].prompt_ids)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": ""}]}, "messages[1]"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"tools": [{"name": "add"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "mul"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "sometimes"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema", "schema": 5}}}, "output_config.format.schema"),
        ({"messages": [{"role": "user", "content": "a" * 3000}]}, "messages"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with serving(say("x")) as http:
        answer = http.post(URL, json={"max_tokens": 5, "messages": MESSAGES, **fields})
    assert answer.status_code == 400, answer.text
    body = answer.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert named in body["error"]["message"]


def test_errors_are_what_the_client_expects():
    with serving(say("x"), ServerOptions(api_keys=("key",))) as http:
        refused = client_of(http)
        with pytest.raises(anthropic.AuthenticationError) as unknown_key:
            refused.messages.create(model="fake", max_tokens=5, messages=MESSAGES)
        client = Anthropic(api_key="key", base_url="http://testserver", http_client=http, max_retries=0)
        assert client.messages.create(model="fake", max_tokens=5, messages=MESSAGES).content[0].text == "x"
        by_header = http.post(URL, json={"max_tokens": 5, "messages": MESSAGES}, headers={"x-api-key": "key"})
        with pytest.raises(anthropic.NotFoundError) as unknown_model:
            client.messages.create(model="other", max_tokens=5, messages=MESSAGES)
        with pytest.raises(anthropic.BadRequestError) as wrong:
            client.messages.create(model="fake", max_tokens=-5, messages=MESSAGES)
    assert by_header.status_code == 200
    assert [error.value.body["error"]["type"] for error in (unknown_key, unknown_model, wrong)] == [
        "authentication_error",
        "not_found_error",
        "invalid_request_error",
    ]


def test_the_end_of_the_engine_in_mid_stream():
    model = say("x")
    submit = model.runner.submit

    def submit_and_die(request, sink):
        submit(request, sink)
        model.runner.fail()

    model.runner.submit = submit_and_die
    with serving(model) as http, pytest.raises(anthropic.APIStatusError) as error:
        list(client_of(http).messages.create(model="fake", max_tokens=5, messages=MESSAGES, stream=True))
    assert error.value.body["error"]["type"] == "overloaded_error"
