from support.fake_engine import FakeModel
from support.fake_server import MESSAGES, serving

from serve.tool_parsers.formats import HERMES
from serve.tool_prompt import messages_with_tools

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def test_the_system_prompt_shows_the_tools():
    chat = messages_with_tools([{"role": "system", "content": "Be kind."}, *MESSAGES], [ADD], HERMES)
    assert [message["role"] for message in chat] == ["system", "user"]
    assert chat[0]["content"].startswith("Be kind.\n\n")
    assert '{"name": "add", "parameters": {"type": "object"}}' in chat[0]["content"]
    assert "<tool_call>\n{" in chat[0]["content"]


def test_a_conversation_without_a_system_prompt_gets_one():
    chat = messages_with_tools(MESSAGES, [ADD], HERMES)
    assert [message["role"] for message in chat] == ["system", "user"]


def test_earlier_calls_become_text():
    chat = messages_with_tools([*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [CALL]}], [ADD], HERMES)
    assert chat[-1] == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    }


def test_a_model_whose_template_knows_no_tools_sees_them():
    model = FakeModel(lambda request, index: "x", template=TEMPLATE)
    with serving(model) as client:
        for tools in ([ADD], []):
            client.post("/v1/chat/completions", json={"messages": MESSAGES, "tools": tools})
    shown, plain = (model.tokenizer.decode(request.prompt_ids) for request in model.runner.submitted)
    assert '"name": "add"' in shown
    assert plain == "<user>Hi"
