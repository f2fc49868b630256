import base64
import struct

import openai
import pytest
from openai import OpenAI
from support.fake_engine import SESSION_LEN, FakeModel
from support.fake_server import serving

URL = "/v1/embeddings"


@pytest.fixture
def http():
    with serving(FakeModel(lambda request, index: "")) as client:
        yield client


@pytest.fixture
def client(http):
    return OpenAI(api_key="none", base_url="http://testserver/v1", http_client=http, max_retries=0)


def vector(text, pooling="mean"):
    data = (text if isinstance(text, bytes) else text.encode())[None if pooling == "mean" else -1 :]
    counts = [sum(byte % 8 == i for byte in data) for i in range(8)]
    norm = sum(count**2 for count in counts) ** 0.5
    return pytest.approx([count / norm for count in counts], rel=1e-6)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_texts(client, encoding):
    # None lets the client choose; it asks for base64 and unpacks it.
    fields = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="fake", input=["Hello", "wörld"], **fields)
    found = [entry.embedding for entry in answer.data]
    if encoding == "base64":
        found = [list(struct.unpack("<8f", base64.b64decode(packed))) for packed in found]
    assert found == [vector("Hello"), vector("wörld")]
    assert [(entry.index, entry.object) for entry in answer.data] == [(0, "embedding"), (1, "embedding")]
    assert (answer.object, answer.model) == ("list", "fake")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len("Hello") + len("wörld".encode())


@pytest.mark.parametrize("given", ["Hi", ["Hi"], [72, 105], [[72, 105]]])
def test_all_kinds_of_input(client, given):
    answer = client.embeddings.create(model="fake", input=given)
    assert [entry.embedding for entry in answer.data] == [vector("Hi")]


def test_pooling(client):
    last = client.embeddings.create(model="fake", input="Hello", extra_body={"pooling": "last"})
    mean = client.embeddings.create(model="fake", input="Hello", extra_body={"pooling": "mean"})
    assert last.data[0].embedding == vector("Hello", "last")
    assert mean.data[0].embedding == vector("Hello")


def test_fewer_dimensions_have_length_1_again(client):
    whole = client.embeddings.create(model="fake", input="Hello").data[0].embedding
    short = client.embeddings.create(model="fake", input="Hello", dimensions=6).data[0].embedding
    assert len(short) == 6
    assert sum(value**2 for value in short) == pytest.approx(1)
    ratio = short[4] / whole[4]
    assert short == pytest.approx([value * ratio for value in whole[:6]])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [1, 9999]}, "input"),
        ({"input": [[1], [9999]]}, "input[1]"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a" * (SESSION_LEN + 1)}, "input"),
        ({"input": "a", "dimensions": 9}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "pooling": "max"}, "pooling"),
    ],
)
def test_a_wrong_field_is_named(http, fields, param):
    answer = http.post(URL, json=fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.embeddings.create(model="other", input="Hello")
    assert error.value.code == "model_not_found"
