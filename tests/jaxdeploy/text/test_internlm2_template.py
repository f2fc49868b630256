"""The prompt of InternLM2 and InternLM2.5, byte for byte."""

import json

import pytest
from support.internlm2_tokenizer import write_internlm2_tokenizer

from jaxdeploy.errors import RequestError
from jaxdeploy.text.chat_template import encode_chat
from jaxdeploy.text.chat_template_choice import choose_chat_template
from jaxdeploy.text.tokenizer import load_tokenizer

ADD = {
    "name": "add",
    "description": "Compute the sum of two numbers 求和",
    "parameters": {
        "type": "object",
        "properties": {
            "a": {"type": "int", "description": "A number"},
            "b": {"type": "int", "description": "A number"},
        },
        "required": ["a", "b"],
    },
}
MUL = {**ADD, "name": "mul", "description": "Calculate the product of two numbers"}
TOOLS = [{"type": "function", "function": ADD}, {"type": "function", "function": MUL}]
TOOL_TURN = (
    "<|im_start|>system name=<|plugin|>\n["
    f"{json.dumps(ADD, ensure_ascii=False)}, {json.dumps(MUL, ensure_ascii=False)}]<|im_end|>\n"
)
SYSTEM = {"role": "system", "content": "Be brief."}
SYSTEM_TURN = "<|im_start|>system\nBe brief.<|im_end|>\n"
USER = {"role": "user", "content": "Compute (3+5)*2"}
USER_TURN = "<|im_start|>user\nCompute (3+5)*2<|im_end|>\n"
ANSWER = "<|im_start|>assistant\n"
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 3, "b": 5}'}}
CALL_TEXT = '<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 3, "b": 5}}<|action_end|>'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("internlm2")
    write_internlm2_tokenizer(directory, vocab_size=92544)
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def template(tokenizer):
    return choose_chat_template("internlm2", tokenizer, None)


def test_plain_conversation(template):
    messages = [SYSTEM, USER, {"role": "assistant", "content": "16"}, {"role": "user", "content": "Sure?"}]
    assert template.render(messages) == (
        "<s>" + SYSTEM_TURN + USER_TURN + "<|im_start|>assistant\n16<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render([USER], add_generation_prompt=False) == "<s>" + USER_TURN


def test_tools_stand_after_the_first_system_turn_or_first(template):
    assert template.render([SYSTEM, USER], tools=TOOLS) == "<s>" + SYSTEM_TURN + TOOL_TURN + USER_TURN + ANSWER
    assert template.render([USER], tools=TOOLS) == "<s>" + TOOL_TURN + USER_TURN + ANSWER
    assert template.render([USER], tools=[]) == "<s>" + USER_TURN + ANSWER
    late = template.render([USER, SYSTEM], tools=TOOLS)
    assert late == "<s>" + TOOL_TURN + USER_TURN + SYSTEM_TURN + ANSWER


def test_bare_function_objects_are_taken_as_tools(template):
    assert template.render([USER], tools=[ADD, MUL]) == template.render([USER], tools=TOOLS)


def test_tools_may_come_as_a_system_turn_of_the_clients_own(template):
    messages = [{"role": "system", "name": "plugin", "content": "[]"}, USER]
    assert template.render(messages) == "<s><|im_start|>system name=<|plugin|>\n[]<|im_end|>\n" + USER_TURN + ANSWER


@pytest.mark.parametrize("content", ["Let me add.", "", None])
def test_tool_calls_are_rendered_back(template, content):
    messages = [USER, {"role": "assistant", "content": content, "tool_calls": [CALL]}]
    assert template.render(messages, add_generation_prompt=False) == (
        "<s>" + USER_TURN + f"<|im_start|>assistant\n{content or ''}{CALL_TEXT}<|im_end|>\n"
    )


def test_several_tool_calls_follow_one_another(template):
    messages = [{"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}]
    text = template.render(messages, add_generation_prompt=False)
    assert text == f"<s><|im_start|>assistant\n{CALL_TEXT}{CALL_TEXT}<|im_end|>\n"


@pytest.mark.parametrize(
    ("message", "head"),
    [
        ({"role": "environment", "name": "plugin"}, "environment name=<|plugin|>"),
        ({"role": "environment", "name": "interpreter"}, "environment name=<|interpreter|>"),
        ({"role": "environment"}, "environment"),
        ({"role": "environment", "tool_call_id": "c1"}, "environment name=<|plugin|>"),
        ({"role": "tool", "tool_call_id": "c1"}, "environment name=<|plugin|>"),
        ({"role": "tool", "tool_call_id": "c1", "name": "add"}, "environment name=<|plugin|>"),
        ({"role": "tool", "tool_call_id": "c1", "name": "interpreter"}, "environment name=<|interpreter|>"),
        ({"role": "function", "name": "add"}, "environment name=<|plugin|>"),
        ({"role": "developer"}, "system"),
        ({"role": "user", "name": "Ada"}, "user"),
    ],
)
def test_heads_of_turns(template, message, head):
    text = template.render([USER, {**message, "content": "8"}])
    assert text == "<s>" + USER_TURN + f"<|im_start|>{head}\n8<|im_end|>\n" + ANSWER


def test_the_tutorials_second_turn(template):
    """The tutorial sends back only the content of the answer, which is None when the model called a tool."""
    messages = [
        USER,
        {"role": "assistant", "content": None},
        {"role": "environment", "content": "3+5=8", "name": "plugin"},
    ]
    assert template.render(messages, tools=TOOLS) == (
        "<s>" + TOOL_TURN + USER_TURN + "<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>environment name=<|plugin|>\n3+5=8<|im_end|>\n<|im_start|>assistant\n"
    )
    messages[1]["content"] = ""
    assert template.render(messages, tools=TOOLS).count("<|im_start|>assistant\n<|im_end|>\n") == 1


def test_code_interpreter_texts_pass(template):
    code = "<|action_start|><|interpreter|>\n```python\nprint(8)\n```<|action_end|>"
    messages = [{"role": "assistant", "content": code}, {"role": "environment", "name": "interpreter", "content": "8"}]
    assert template.render(messages) == (
        f"<s><|im_start|>assistant\n{code}<|im_end|>\n<|im_start|>environment name=<|interpreter|>\n8<|im_end|>\n"
        + ANSWER
    )


def test_last_answer_is_continued(template):
    messages = [USER, {"role": "assistant", "content": "It is "}]
    assert template.render(messages, continue_final_message=True) == "<s>" + USER_TURN + ANSWER + "It is "


def test_unknown_role_is_refused(template):
    with pytest.raises(RequestError, match="role robot is not one of system"):
        template.render([{"role": "robot", "content": "x"}])


def test_ids_hold_one_bos_and_the_special_tokens(template, tokenizer):
    ids = encode_chat(tokenizer, template.render([USER], tools=TOOLS))
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert [token for token in ids if token >= 92538] == [92543, 92538, 92542, 92543, 92542, 92543]


def test_answers_end_on_the_turn_or_the_action(template, tokenizer):
    assert template.stop_tokens == ("<|im_end|>", "<|action_end|>")
    assert template.stop_ids(tokenizer) == (92542, 92540)
