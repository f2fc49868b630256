import pytest
from support.fake_engine import THINK_TEMPLATE, TOOL_TEMPLATE, FakeModel
from support.fake_server import MESSAGES, serving

URL = "/v1/chat/completions"
INTEGER = {"type": "object", "properties": {"a": {"type": "int"}}, "required": ["a"]}
ADD = {"type": "function", "function": {"name": "add", "parameters": INTEGER}}
MUL = {"type": "function", "function": {"name": "mul", "parameters": INTEGER}}
STRICT_ADD = {"type": "function", "function": {**ADD["function"], "strict": True}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": INTEGER}}
END = 257


def call(name, arguments='{"a": 3}'):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def follows(model, text):
    """Whether the constraint of the last request lets an answer be ``text``."""
    constraint = model.runner.submitted[-1].constraint()
    for token in [*model.tokenizer.encode(text, add_special=False), END]:
        mask = constraint.mask()
        if mask is not None and not (int(mask[token // 32]) >> (token % 32)) & 1:
            return False
        if token != END:
            constraint.advance(token)
    return True


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({"response_format": {"type": "json_object"}}, '{"b": [1]}', "[1]"),
        ({"response_format": SCHEMA}, '{"a": 3}', '{"a": "3"}'),
        ({"response_format": {"type": "regex", "regex": "[ab]+c"}}, "abc", "abd"),
        ({"response_format": {"type": "choice", "choice": ["yes", "no"]}}, "no", "maybe"),
        ({"response_format": {"type": "lark", "lark": 'start: "a" | "bc"'}}, "bc", "b"),
        ({"guided_choice": ["yes", "no"]}, "yes", "maybe"),
        ({"tools": [ADD, MUL], "tool_choice": "required"}, call("mul"), "I can't."),
        ({"tools": [ADD, MUL], "tool_choice": "required"}, f"{call('mul')}\n{call('add')}", call("sub")),
        ({"tools": [ADD, MUL], "tool_choice": "required"}, call("add"), call("add", '{"a": "x"}')),
        ({"tools": [ADD], "tool_choice": "required", "parallel_tool_calls": False}, call("add"), f"{call('add')}\n{call('add')}"),
        ({"tools": [ADD, MUL], "tool_choice": {"type": "function", "function": {"name": "add"}}}, call("add"), call("mul")),
        ({"tools": [STRICT_ADD]}, "Hello", call("add", '{"a": "x"}')),
        ({"tools": [STRICT_ADD]}, f"Let me see. {call('add')}", call("add", "{}")),
        ({"tools": [ADD], "response_format": SCHEMA}, '{"a": 1}', "Hello"),
        ({"tools": [ADD], "response_format": SCHEMA}, call("add"), "Hello"),
        ({"tools": [ADD], "tool_choice": "none", "response_format": SCHEMA}, '{"a": 1}', call("add")),
    ],
)  # fmt: skip
def test_an_answer_is_held_to_what_was_demanded(fields, right, wrong):
    model = FakeModel(lambda request, index: right, template=TOOL_TEMPLATE)
    with serving(model) as client:
        answer = client.post(URL, json={"messages": MESSAGES, **fields})
        assert answer.status_code == 200, answer.text
        assert follows(model, right)
        assert not follows(model, wrong)


@pytest.mark.parametrize("fields", [{}, {"tools": [ADD]}, {"response_format": {"type": "text"}}, {"tools": []}])
def test_other_answers_are_free(fields):
    model = FakeModel(lambda request, index: "x", template=TOOL_TEMPLATE)
    with serving(model) as client:
        assert client.post(URL, json={"messages": MESSAGES, **fields}).status_code == 200
    assert model.runner.submitted[0].constraint is None


@pytest.mark.parametrize("field", [{"ignore_eos": True}, {"min_tokens": 5}])
@pytest.mark.parametrize(("url", "prompt"), [(URL, {"messages": MESSAGES}), ("/v1/completions", {"prompt": "x"})])
def test_a_grammar_alone_says_where_its_answer_ends(url, prompt, field):
    with serving(FakeModel(lambda request, index: "x")) as client:
        answer = client.post(url, json={**prompt, **field, "response_format": {"type": "json_object"}})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(field))


def test_thinking_comes_before_the_grammar():
    model = FakeModel(lambda request, index: "x", template=THINK_TEMPLATE)
    with serving(model) as client:
        client.post(URL, json={"messages": MESSAGES, "response_format": SCHEMA})
        assert follows(model, '<think>Hm, 3?</think>{"a": 3}')
        assert follows(model, '{"a": 3}')
        assert not follows(model, "<think>Hm</think>three")


def test_a_completion_is_held_too():
    model = FakeModel(lambda request, index: "x")
    with serving(model) as client:
        client.post("/v1/completions", json={"prompt": "a", "response_format": {"type": "regex", "regex": "b+"}})
        assert follows(model, "bb")
        assert not follows(model, "a")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "regex", "regex": "(("}}, "response_format"),
        ({"response_format": {"type": "lark", "lark": "start: nothing"}}, "response_format"),
        ({"response_format": SCHEMA, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, "response_format"),
    ],
)  # fmt: skip
def test_a_grammar_that_does_not_compile_is_a_400(fields, param):
    model = FakeModel(lambda request, index: "x", template=TOOL_TEMPLATE)
    with serving(model) as client:
        answer = client.post(URL, json={"messages": MESSAGES, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert model.runner.submitted == []
