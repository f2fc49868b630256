import json

import pytest
from support.fake_engine import THINK_TEMPLATE, TOOL_TEMPLATE, FakeModel
from support.fake_server import MESSAGES, events, serving

from serve.options import ServerOptions

URL = "/v1/chat/completions"
ADD = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "int"}}}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'


def say(text):
    return FakeModel(lambda request, index: text)


def test_a_plain_answer():
    model = say("Hello, wörld")
    with serving(model) as client:
        answer = client.post(URL, json={"model": "fake", "messages": MESSAGES})
        prompt = model.tokenizer.decode(model.runner.submitted[0].prompt_ids, skip_special=False)
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake"
    assert body["id"].startswith("chatcmpl-")
    choice = body["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Hello, wörld"
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    tokens = len("Hello, wörld".encode()) + 1
    assert body["usage"]["completion_tokens"] == tokens
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + tokens
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_a_stream_gives_the_same_text():
    with serving(say("Hello, wörld")) as client:
        answer = client.post(URL, json={"messages": MESSAGES, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hello, wörld"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


def test_usage_comes_last_in_a_stream_that_asks_for_it():
    with serving(say("abc")) as client:
        body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
        *chunks, last, done = events(client.post(URL, json=body).text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in chunks)


def test_several_answers():
    model = FakeModel(lambda request, index: f"answer {index}")
    with serving(model) as client:
        whole = client.post(URL, json={"messages": MESSAGES, "n": 3}).json()
        *chunks, _ = events(client.post(URL, json={"messages": MESSAGES, "n": 3, "stream": True}).text)
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["answer 0", "answer 1", "answer 2"]
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == f"answer {index}"
        assert own[-1]["finish_reason"] == "stop"


def test_length_is_reported():
    with serving(say("abcdef")) as client:
        choice = client.post(URL, json={"messages": MESSAGES, "max_completion_tokens": 3}).json()["choices"][0]
    assert choice["message"]["content"] == "abc"
    assert choice["finish_reason"] == "length"


def test_stop_texts_end_the_answer():
    with serving(say("one two three")) as client:
        choice = client.post(URL, json={"messages": MESSAGES, "stop": ["x", " th"]}).json()["choices"][0]
        single = client.post(URL, json={"messages": MESSAGES, "stop": "e t"}).json()["choices"][0]
    assert choice["message"]["content"] == "one two"
    assert choice["finish_reason"] == "stop"
    assert single["message"]["content"] == "on"


def test_logprobs_in_a_whole_answer_and_in_a_stream():
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    with serving(say("hé")) as client:
        entries = client.post(URL, json=body).json()["choices"][0]["logprobs"]["content"]
        *chunks, _ = events(client.post(URL, json={**body, "stream": True}).text)
    assert [entry["bytes"] for entry in entries] == [[byte] for byte in "hé".encode()]
    assert entries[0]["token"] == "h"
    assert entries[0]["logprob"] == -0.5
    assert [top["logprob"] for top in entries[0]["top_logprobs"]] == [-0.5, -1.5]
    streamed = [entry for chunk in chunks if (lp := chunk["choices"][0]["logprobs"]) for entry in lp["content"]]
    assert streamed == entries


def test_sampling_fields_reach_the_engine():
    fields = {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 42,
        "logit_bias": {"65": -100, "66": 5.5},
        "stop": ["a", "b"],
        "stop_token_ids": [9],
        "ignore_eos": True,
        "min_tokens": 2,
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 4,
        "unknown_field": {"is": "ignored"},
    }
    model = say("x")
    with serving(model) as client:
        assert client.post(URL, json={"messages": MESSAGES, **fields}).status_code == 200
    config = model.runner.submitted[0].config
    assert (config.temperature, config.top_p, config.top_k, config.min_p) == (0.3, 0.9, 7, 0.1)
    assert (config.repetition_penalty, config.presence_penalty, config.frequency_penalty) == (1.2, 0.5, -0.5)
    assert (config.random_seed, config.logit_bias) == (42, {65: -100, 66: 5.5})
    assert (config.stop_words, config.stop_token_ids) == (("a", "b"), (9,))
    assert (config.ignore_eos, config.min_new_tokens, config.max_new_tokens, config.logprobs) == (True, 2, 5, 4)
    assert config.do_sample


def test_defaults_come_from_the_model_and_then_are_openais():
    model = FakeModel(
        lambda request, index: "x", generation_defaults={"temperature": 0.6, "top_k": 20, "eos_token_id": 2}
    )
    with serving(model) as client:
        client.post(URL, json={"messages": MESSAGES, "top_k": -1})
    config = model.runner.submitted[0].config
    assert (config.temperature, config.top_k, config.top_p, config.max_new_tokens) == (0.6, 0, 1.0, None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call(stream):
    model = FakeModel(lambda request, index: f"Let me see. {CALL}", template=TOOL_TEMPLATE)
    body = {"messages": MESSAGES, "tools": [ADD], "stream": stream}
    with serving(model) as client:
        answer = client.post(URL, json=body)
    prompt = model.tokenizer.decode(model.runner.submitted[0].prompt_ids, skip_special=False)
    assert prompt.startswith(f"tools:{json.dumps([ADD])}\n")
    if not stream:
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me see. "
        call = choice["message"]["tool_calls"][0]
        assert call["type"] == "function"
        assert call["function"]["name"] == "add"
        assert json.loads(call["function"]["arguments"]) == {"a": 3}
        return
    *chunks, _ = events(answer.text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["function"] == {"name": "add", "arguments": ""}
    assert calls[0]["id"].startswith("call_")
    assert all(call["index"] == 0 for call in calls)
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"a": 3}
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see. "
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_tool_choice_none_hides_the_tools_and_their_parser():
    model = FakeModel(lambda request, index: CALL, template=TOOL_TEMPLATE)
    with serving(model) as client:
        body = {"messages": MESSAGES, "tools": [ADD], "tool_choice": "none"}
        choice = client.post(URL, json=body).json()["choices"][0]
    prompt = model.tokenizer.decode(model.runner.submitted[0].prompt_ids, skip_special=False)
    assert "tools:" not in prompt
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_most_without_parallel_calls(stream):
    model = FakeModel(lambda request, index: f"{CALL}\n{CALL}", template=TOOL_TEMPLATE)
    body = {"messages": MESSAGES, "tools": [ADD], "stream": stream}
    with serving(model) as client:
        both = client.post(URL, json=body)
        one = client.post(URL, json={**body, "parallel_tool_calls": False})
    if stream:
        names = [
            [
                c["function"]["name"]
                for e in events(a.text)[:-1]
                for c in e["choices"][0]["delta"].get("tool_calls", [])
                if "id" in c
            ]
            for a in (both, one)
        ]
        assert events(one.text)[-2]["choices"][0]["finish_reason"] == "tool_calls"
    else:
        names = [[c["function"]["name"] for c in a.json()["choices"][0]["message"]["tool_calls"]] for a in (both, one)]
        assert one.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert names == [["add", "add"], ["add"]]


def test_other_special_tokens_stay_out_of_the_text():
    model = FakeModel(lambda request, index: "a<|im_start|>b<tool_call>c", template=TOOL_TEMPLATE)
    with serving(model) as client:
        body = {"messages": MESSAGES, "tools": [ADD]}
        content = client.post(URL, json=body).json()["choices"][0]["message"]["content"]
        raw = client.post(URL, json={**body, "skip_special_tokens": False}).json()["choices"][0]["message"]["content"]
    assert content == "ab<tool_call>c"
    assert raw == "a<|im_start|>b<tool_call>c"


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_parted_and_counted(stream):
    model = FakeModel(lambda request, index: "<think>\nhm\n</think>\n\nYes.", template=THINK_TEMPLATE)
    body = {"messages": MESSAGES, "stream": stream, "stream_options": {"include_usage": True}}
    with serving(model) as client:
        answer = client.post(URL, json=body)
    if stream:
        *chunks, last, _ = events(answer.text)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        content = "".join(delta.get("content", "") for delta in deltas)
        reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        usage = last["usage"]
    else:
        message, usage = answer.json()["choices"][0]["message"], answer.json()["usage"]
        content, reasoning = message["content"], message["reasoning_content"]
    assert (content, reasoning) == ("Yes.", "hm")
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len("\nhm\n</think>") + 1
    assert usage["completion_tokens"] == len("<think>\nhm\n</think>\n\nYes.") + 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"n": 0}, "n"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": 1}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": "y"}}, "logit_bias.5"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "mul"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_wrong_field_is_named(fields, param):
    with serving(say("x")) as client:
        answer = client.post(URL, json={"messages": MESSAGES, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]


def test_tools_for_a_model_that_calls_none():
    with serving(say("x"), ServerOptions(tool_call_parser="none")) as client:
        answer = client.post(URL, json={"messages": MESSAGES, "tools": [ADD]})
        hidden = client.post(URL, json={"messages": MESSAGES, "tools": [ADD], "tool_choice": "none"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert hidden.status_code == 200


def test_null_is_absent():
    fields = dict.fromkeys(
        ["temperature", "stop", "n", "tools", "tool_choice", "stream", "max_tokens", "logit_bias", "seed"]
    )
    with serving(say("x")) as client:
        answer = client.post(URL, json={"messages": MESSAGES, **fields})
    assert answer.status_code == 200


def test_a_prompt_that_is_too_long():
    with serving(say("x")) as client:
        answer = client.post(URL, json={"messages": [{"role": "user", "content": "a" * 3000}], "stream": True})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "2000" in error["message"]


def test_an_unknown_model():
    with serving(say("x")) as client:
        answer = client.post(URL, json={"model": "gpt", "messages": MESSAGES})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
