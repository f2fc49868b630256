import pytest
from support.fake_engine import SESSION_LEN, FakeModel
from support.fake_server import MESSAGES, serving


@pytest.fixture
def client():
    with serving(FakeModel(lambda request, index: "")) as client:
        yield client


def test_a_text_there_and_back(client):
    body = client.post("/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert body["tokens"] == list("hé".encode())
    assert body["count"] == 3
    assert body["max_model_len"] == SESSION_LEN
    assert body["token_strs"][0] == "h"
    assert client.post("/detokenize", json={"tokens": body["tokens"]}).json() == {"prompt": "hé"}


def test_a_conversation_is_tokenized_as_the_model_gets_it(client):
    tokens = client.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
    text = client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    bare = client.post("/detokenize", json={"tokens": tokens, "skip_special_tokens": True}).json()["prompt"]
    assert bare == "user\nHi\nassistant\n"


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": MESSAGES}])
def test_either_a_text_or_a_conversation(client, body):
    answer = client.post("/tokenize", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_a_token_that_does_not_exist(client):
    answer = client.post("/detokenize", json={"tokens": [5, 99999]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tokens[1]")
