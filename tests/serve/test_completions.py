import pytest
from support.fake_engine import SESSION_LEN, FakeModel
from support.fake_server import events, serving

URL = "/v1/completions"


def say(text):
    return FakeModel(lambda request, index: text)


def test_a_text_is_continued():
    model = say(" world")
    with serving(model) as client:
        body = client.post(URL, json={"model": "fake", "prompt": "Hello"}).json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"text": " world", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["prompt_tokens"] == 5
    assert body["usage"]["completion_tokens"] == 7
    assert model.runner.submitted[0].config.max_new_tokens == 16


def test_a_stream_gives_the_same_text():
    with serving(say(" world")) as client:
        body = {"prompt": "Hello", "stream": True, "stream_options": {"include_usage": True}}
        *chunks, last, done = events(client.post(URL, json=body).text)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " world"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("prompts", [["a", "bc"], [[97], [98, 99]]])
@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_answers_keep_their_order(prompts, stream):
    model = FakeModel(lambda request, index: f"{bytes(request.prompt_ids).decode()}{index}")
    with serving(model) as client:
        answer = client.post(URL, json={"prompt": prompts, "n": 2, "stream": stream})
    texts = dict.fromkeys(range(4), "")
    for chunk in events(answer.text)[:-1] if stream else [answer.json()]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == ["a0", "a1", "bc0", "bc1"]
    assert len(model.runner.submitted) == 2


def test_token_ids_as_a_prompt():
    model = say("!")
    with serving(model) as client:
        assert client.post(URL, json={"prompt": [72, 105]}).json()["choices"][0]["text"] == "!"
    assert model.runner.submitted[0].prompt_ids == [72, 105]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_covers_prompt_and_answer(stream):
    with serving(say("cd")) as client:
        answer = client.post(URL, json={"prompt": "aé", "echo": True, "logprobs": 2, "stream": stream})
    choices = [chunk["choices"][0] for chunk in events(answer.text)[:-1]] if stream else answer.json()["choices"]
    blocks = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    whole = {key: [value for block in blocks for value in block[key]] for key in blocks[0]}
    assert "".join(choice["text"] for choice in choices) == "aécd"
    assert whole["tokens"] == ["a", "\ufffd", "\ufffd", "c", "d"]
    assert whole["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
    assert whole["text_offset"] == [0, 1, 1, 2, 3]
    assert whole["top_logprobs"][0] is None
    assert whole["top_logprobs"][3] == {"c": -0.5, "d": -1.5}


def test_a_prompt_is_scored_without_an_answer():
    model = say("never")
    with serving(model) as client:
        body = client.post(URL, json={"prompt": "ab", "echo": True, "max_tokens": 0, "logprobs": 0}).json()
    assert body["choices"][0]["text"] == "ab"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]
    assert body["usage"]["completion_tokens"] == 0
    assert model.runner.submitted == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": "", "echo": True, "logprobs": 1, "max_tokens": 0}, "prompt"),
        ({"prompt": "x" * 9999, "echo": True, "logprobs": 1, "max_tokens": 0}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 100}, "prompt"),
        ({"response_format": {}}, "response_format.type"),
        ({"prompt": "x" * SESSION_LEN}, "prompt"),
        ({"prompt": ["ok", "x" * SESSION_LEN]}, "prompt"),
    ],
)
def test_a_wrong_field_is_named(fields, param):
    model = say("x")
    with serving(model) as client:
        answer = client.post(URL, json={"prompt": "a", **fields})
        health = client.post(URL, json={"prompt": "a"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert health.status_code == 200
    assert model.runner.active == []


def test_the_prompt_is_needed():
    with serving(say("x")) as client:
        error = client.post(URL, json={}).json()["error"]
    assert error["param"] == "prompt"
