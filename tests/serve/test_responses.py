import json

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.fake_engine import THINK_TEMPLATE, TOOL_TEMPLATE, FakeModel
from support.fake_server import serving

URL = "/v1/responses"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"type": "function", "name": "add", "description": "Adds.", "parameters": SCHEMA}
MUL = {"type": "function", "name": "mul"}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'
# Shows calls and thoughts of earlier turns.
HISTORY_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}{% if m.reasoning_content %} thought:{{ m.reasoning_content }}{% endif %}]"
    "{{ m.content }}{% for c in m.tool_calls %}<{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}>"
    "{% endfor %}{% endfor %}[assistant]{# tools <tool_call> </think> #}"
    "{% if enable_thinking is defined %}thinking={{ enable_thinking }}{% endif %}"
)
EVENT = TypeAdapter(ResponseStreamEvent)


def say(text, template=TOOL_TEMPLATE):
    return FakeModel(lambda request, index: text, template=template)


def client_of(http):
    return OpenAI(api_key="none", base_url="http://testserver/v1", http_client=http, max_retries=0)


def ask(model, *, stream=False, **fields):
    """The response, whole or as the client puts it together from a stream, checked against the client's types."""
    fields = {"model": "fake", "input": "Hi", **fields}
    with serving(model) as http:
        client = client_of(http)
        if stream:
            with client.responses.stream(**fields) as events:
                last = list(events)[-1]
            response = last.response
        else:
            response = client.responses.create(**fields)
    return Response.model_validate(response.to_dict(), strict=True)


def raw_events(model, **fields):
    """The events of a stream as JSON, each checked against the client's types."""
    with serving(model) as http:
        text = http.post(URL, json={"input": "Hi", "stream": True, **fields}).text
    events = []
    for chunk in text.removesuffix("\n\n").split("\n\n"):
        name, data = chunk.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        EVENT.validate_python(value)
        events.append(value)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def prompt_of(model, number=0):
    return model.tokenizer.decode(model.runner.submitted[number].prompt_ids, skip_special=False)


both = pytest.mark.parametrize("stream", [False, True])


@both
def test_a_plain_answer(stream):
    model = say("Hello, wörld")
    response = ask(model, stream=stream, instructions="Be kind.", temperature=0.5, metadata={"k": "v"})
    assert response.output_text == "Hello, wörld"
    assert response.id.startswith("resp_")
    assert (response.status, response.model, response.object) == ("completed", "fake", "response")
    assert (response.instructions, response.temperature, response.metadata) == ("Be kind.", 0.5, {"k": "v"})
    assert [item.status for item in response.output] == ["completed"]
    assert response.usage.output_tokens == len("Hello, wörld".encode()) + 1
    assert response.usage.input_tokens == len(model.runner.submitted[0].prompt_ids)
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert prompt_of(model) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_events_come_in_order():
    events = raw_events(say(f"<think>\nHm.\n</think>\n\nSo. {CALL}\n{CALL}", THINK_TEMPLATE), tools=[ADD])
    names = [event["type"].removeprefix("response.") for event in events]
    once = [name for i, name in enumerate(names) if not name.endswith("delta") or names[i - 1] != name]

    def part(kind):
        inner = [f"{kind}.delta", f"{kind}.done"]
        return ["output_item.added", "content_part.added", *inner, "content_part.done", "output_item.done"]

    arguments = [f"function_call_arguments.{end}" for end in ("delta", "done")]
    call = ["output_item.added", *arguments, "output_item.done"]
    parts = [*part("reasoning_text"), *part("output_text"), *call, *call]
    assert once == ["created", "in_progress", *parts, "completed"]

    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in added] == [event["output_index"] for event in done] == [0, 1, 2, 3]
    assert [event["item"]["type"] for event in added] == ["reasoning", "message", "function_call", "function_call"]
    assert {event["item"]["status"] for event in added} == {"in_progress"}
    for first, last in zip(added, done, strict=True):
        assert first["item"]["id"] == last["item"]["id"]
        deltas = [
            event["delta"] for event in events if event.get("item_id") == first["item"]["id"] and "delta" in event
        ]
        item = last["item"]
        assert "".join(deltas) == (item["arguments"] if "arguments" in item else item["content"][0]["text"])
    assert len({event["item"]["id"] for event in added}) == 4
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert last["output"] == [event["item"] for event in done]
    assert last["id"] == first["id"]


@both
def test_thinking_and_calls(stream):
    response = ask(say(f"<think>\nHm.\n</think>\n\n{CALL}", THINK_TEMPLATE), stream=stream, tools=[ADD])
    reasoning, call = response.output
    assert (reasoning.type, reasoning.content[0].text) == ("reasoning", "Hm.")
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"a": 3})
    assert call.call_id.startswith("call_")
    assert response.output_text == ""
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert response.tools[0].name == "add"


@both
def test_an_answer_that_is_cut(stream):
    response = ask(say("abcdef"), stream=stream, max_output_tokens=3)
    assert (response.output_text, response.status) == ("abc", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


def test_a_call_that_is_cut_is_never_done():
    tokens = len('\n{"name": "add", "arguments": {"a"')
    events = raw_events(say(CALL), tools=[ADD], max_output_tokens=1 + tokens)
    assert "response.function_call_arguments.done" not in [event["type"] for event in events]
    assert events[-2]["item"]["status"] == "incomplete"
    assert events[-1]["type"] == "response.incomplete"


def test_options_reach_the_engine():
    model = say("x")
    extra = {"top_k": 7, "min_p": 0.1, "seed": 5, "repetition_penalty": 1.2, "stop": ["b"], "unknown": {}}
    ask(model, temperature=0.3, top_p=0.9, max_output_tokens=17, reasoning={"effort": "low"}, extra_body=extra)
    config = model.runner.submitted[0].config
    assert (config.temperature, config.top_p, config.top_k, config.min_p) == (0.3, 0.9, 7, 0.1)
    assert (config.random_seed, config.repetition_penalty, config.max_new_tokens) == (5, 1.2, 17)
    assert config.stop_words == ("b",)


def test_a_model_that_may_go_without_thinking():
    model = say("x", HISTORY_TEMPLATE)
    ask(model, reasoning={"effort": "none"})
    assert prompt_of(model).endswith("thinking=False")


def test_the_model_is_shown_the_tools():
    model = say("x")
    ask(model, tools=[ADD])
    shown = {"type": "function", "function": {key: value for key, value in ADD.items() if key != "type"}}
    assert prompt_of(model).startswith(f"tools:{json.dumps([shown])}\n")


def test_only_allowed_tools_are_shown():
    model = say("x")
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "mul"}]}
    response = ask(model, tools=[ADD, MUL], tool_choice=choice)
    assert '"mul"' in prompt_of(model)
    assert '"add"' not in prompt_of(model)
    assert [tool.name for tool in response.tools] == ["add", "mul"]
    assert response.tool_choice.mode == "auto"


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "add"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]},
    ],
)
def test_a_demanded_call_is_constrained(choice):
    model = say(CALL)
    ask(model, tools=[ADD], tool_choice=choice)
    assert model.runner.submitted[0].constraint is not None


def test_tool_choice_none_hides_the_tools():
    model = say(CALL)
    response = ask(model, tools=[ADD], tool_choice="none")
    assert "tools:" not in prompt_of(model)
    assert [item.type for item in response.output] == ["message"]


@both
def test_one_call_at_most(stream):
    response = ask(say(f"{CALL}\n{CALL}"), stream=stream, tools=[ADD], parallel_tool_calls=False)
    assert [item.type for item in response.output] == ["function_call"]
    assert response.parallel_tool_calls is False


@pytest.mark.parametrize(
    "form", [{"type": "json_object"}, {"type": "json_schema", "name": "thing", "schema": SCHEMA, "strict": True}]
)
def test_a_format_for_the_answer(form):
    model = say('{"a": 1}')
    response = ask(model, text={"format": form})
    assert model.runner.submitted[0].constraint is not None
    assert response.text.format.type == form["type"]


def test_a_conversation_with_calls():
    model = say("x", HISTORY_TEMPLATE)
    ask(
        model,
        instructions="One.",
        input=[
            {"role": "developer", "content": "Two."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "3+5?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Add."}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
            },
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": '{"a": 3}'},
            {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "8"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "no a"}]},
            {"role": "user", "content": "And?"},
        ],
        tools=[ADD],
    )
    assert prompt_of(model) == (
        '[system]One.\n\nTwo.[user]3+5?[assistant thought:Add.]Let me see.<c1 add {"a": 3}><c2 add {}>'
        "[tool]8[tool]no a[user]And?[assistant]"
    )


@both
def test_going_on_from_a_stored_response(stream):
    texts = [f"<think>\nHm.\n</think>\n\nSo. {CALL}", "Eight."]
    model = FakeModel(lambda request, index: texts.pop(0), template=HISTORY_TEMPLATE)
    with serving(model) as http:
        client = client_of(http)
        first = client.responses.create(model="fake", input="3+5?", instructions="Be kind.", tools=[ADD])
        call = first.output[-1]
        answer = [{"type": "function_call_output", "call_id": call.call_id, "output": "8"}]
        fields = {"model": "fake", "input": answer, "previous_response_id": first.id}
        if stream:
            with client.responses.stream(**fields) as events:
                second = list(events)[-1].response
        else:
            second = client.responses.create(**fields)
        found = client.responses.retrieve(second.id)
    # The instructions are not carried over.
    assert prompt_of(model, 1) == (
        f'[user]3+5?[assistant thought:Hm.]So. <{call.call_id} add {{"a": 3}}>[tool]8[assistant]'
    )
    assert second.previous_response_id == first.id
    assert found.output_text == "Eight."
    assert [item.id for item in found.output] == [item.id for item in second.output]
    assert found.usage == second.usage


def test_stored_responses_can_be_deleted():
    with serving(say("x")) as http:
        client = client_of(http)
        response = client.responses.create(model="fake", input="Hi")
        client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(response.id)
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(model="fake", input="Hi", previous_response_id=response.id)
    assert (error.value.code, error.value.param) == ("previous_response_not_found", "previous_response_id")


def test_store_false_keeps_nothing():
    with serving(say("x")) as http:
        client = client_of(http)
        response = client.responses.create(model="fake", input="Hi", store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
    assert response.store is False


def item(**fields):
    return {"input": [fields]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        (item(role="robot", content="x"), "input[0].role"),
        (item(role="user", content=[{"type": "input_image"}]), "input[0].content[0]"),
        (item(role="user", content=[{"type": "input_text", "text": 5}]), "input[0].content[0].text"),
        (item(type="computer_call"), "input[0]"),
        ({"input": ["x"]}, "input[0]"),
        (item(type="function_call", call_id="c", name="add"), "input[0].arguments"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "mul"}}, "tool_choice"),
        (
            {
                "tools": [ADD],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "mul"}],
                },
            },
            "tool_choice",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"input": "a" * 3000}, "input"),
    ],
)
def test_a_wrong_field_is_named(fields, param):
    with serving(say("x")) as http:
        answer = http.post(URL, json={"input": "Hi", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


def test_what_is_not_supported_but_harmless_is_ignored():
    fields = {"include": ["reasoning.encrypted_content"], "background": False, "top_logprobs": 0, "truncation": "auto"}
    response = ask(say("x"), **fields)
    assert (response.output_text, response.truncation) == ("x", "disabled")


def test_an_unknown_model():
    with serving(say("x")) as http, pytest.raises(openai.NotFoundError) as error:
        client_of(http).responses.create(model="other", input="Hi")
    assert error.value.code == "model_not_found"


def test_the_end_of_the_engine_in_mid_stream():
    model = say("x")
    submit = model.runner.submit

    def submit_and_die(request, sink):
        submit(request, sink)
        model.runner.fail()

    model.runner.submit = submit_and_die
    events = raw_events(model)
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"


def test_the_api_description_knows_the_endpoints():
    with serving(say("x")) as http:
        document = http.get("/openapi.json").json()
    assert set(document["paths"]["/v1/responses/{id}"]) == {"get", "delete"}
    schema = document["paths"]["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ResponsesRequest"}
    kinds = document["components"]["schemas"]["ResponsesRequest"]["properties"]["input"]["anyOf"]
    assert {"type": "string"} in kinds
