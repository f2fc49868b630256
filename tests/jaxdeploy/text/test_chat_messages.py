import pytest

from jaxdeploy.errors import RequestError
from jaxdeploy.text.chat_messages import normalize_messages


def test_content_parts_become_one_text():
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]
    assert normalize_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "Hello you"}]


def test_missing_content_is_empty_but_stays_none_beside_tool_calls():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    plain, absent, calling = normalize_messages(
        [
            {"role": "assistant", "content": None},
            {"role": "assistant", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
    )
    assert plain == absent == {"role": "assistant", "content": ""}
    assert calling["content"] is None


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ({"name": "f", "arguments": '{"b": 1, "a": "é"}'}, {"b": 1, "a": "é"}),
        ({"name": "f", "arguments": {"a": 1}}, {"a": 1}),
        ({"name": "f", "parameters": {"a": 1}}, {"a": 1}),
        ({"name": "f", "arguments": ""}, {}),
        ({"name": "f"}, {}),
        ({"name": "f", "arguments": '{"a": '}, '{"a": '),
    ],
)
def test_arguments_become_the_object_they_describe(function, expected):
    message = {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}
    (copied,) = normalize_messages([message])
    assert copied["tool_calls"][0]["id"] == "1"
    assert copied["tool_calls"][0]["function"]["arguments"] == expected


def test_other_fields_pass():
    message = {"role": "tool", "content": "8", "tool_call_id": "1", "name": "plugin", "reasoning_content": "hm"}
    assert normalize_messages([message]) == [message]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[1]"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
            "messages[1].content[1].type",
        ),
        ({"role": "user", "content": ["a"]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "messages[1].tool_calls"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
            "messages[1].tool_calls[0].function",
        ),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[1].tool_calls[0].function"),
    ],
)
def test_the_malformed_part_is_named(message, param):
    with pytest.raises(RequestError) as error:
        normalize_messages([{"role": "user", "content": "x"}, message])
    assert error.value.param == param
    assert str(error.value).startswith(param)
