import copy
import json

import pytest
from support.internlm2_tokenizer import write_internlm2_tokenizer

from jaxdeploy.errors import ConfigError, RequestError
from jaxdeploy.text.chat_template import ChatTemplate, encode_chat
from jaxdeploy.text.tokenizer import load_tokenizer

PLAIN = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'nobody' %}{{ raise_exception('nobody may not speak') }}{% endif %}
<{{ message.role }}>{{ message.content }}
{%- endfor %}
{%- if add_generation_prompt %}
<assistant>
{%- endif %}"""

# What templates of the Hub do, one thing each.
FEATURES = {
    "tools": "{% for t in tools %}{{ t | tojson }}{{ t | tojson(indent=2) }}{% endfor %}",
    "break": "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}!",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "blocks": "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}",
    "kwargs": "{{ enable_thinking }} {% if documents is none %}none{% endif %} {{ undefined_name }}",
    "calls": "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ m.content is none }}{% endfor %}",
    "methods": "{{ messages[0].content.split('l')[0] | trim }} {{ messages[0]['content'] | upper | length }}",
}
MESSAGES = [
    {"role": "system", "content": "hello <b> & 'é' 好"},
    {"role": "user", "content": "one"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"z": "é", "a": [1]}}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "two"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "<é>",
            "parameters": {"type": "object", "properties": {"z": {}, "a": {}}},
        },
    }
]


@pytest.mark.parametrize("feature", FEATURES)
def test_renders_as_transformers_does(feature):
    from transformers.utils.chat_template_utils import render_jinja_template

    source = FEATURES[feature]
    expected, _ = render_jinja_template(
        [copy.deepcopy(MESSAGES)], tools=TOOLS, chat_template=source, enable_thinking=False
    )
    template = ChatTemplate(source, name="t")
    text = template.render(
        MESSAGES, tools=TOOLS, add_generation_prompt=False, template_kwargs={"enable_thinking": False}
    )
    assert text == expected[0]


@pytest.mark.parametrize("content", ["An answer", "ends in spaces  ", "  ", "好"])
@pytest.mark.parametrize("source", [PLAIN, "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"])
def test_continues_the_last_message_as_transformers_does(content, source):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    expected, _ = render_jinja_template([messages], chat_template=source, continue_final_message=True, bos_token="<s>")
    template = ChatTemplate(source, name="t", variables={"bos_token": "<s>"})
    assert template.render(messages, continue_final_message=True) == expected[0]
    assert messages[1]["content"] == content


def test_generation_prompt_is_on_by_default():
    template = ChatTemplate(PLAIN, name="t", variables={"bos_token": "<s>"})
    messages = [{"role": "user", "content": "Hi"}]
    assert template.render(messages) == "<s><user>Hi<assistant>"
    assert template.render(messages, add_generation_prompt=False) == "<s><user>Hi"


def test_time_is_there():
    text = ChatTemplate("{{ strftime_now('%Y') }}", name="t").render([])
    assert text.isdigit()
    assert int(text) >= 2025


def test_what_the_template_refuses_is_a_request_error():
    template = ChatTemplate(PLAIN, name="mine")
    with pytest.raises(RequestError, match=r"mine can't render these messages: nobody may not speak") as error:
        template.render([{"role": "nobody", "content": "x"}])
    assert error.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[5].content.x }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].no_method() }}",
        "{{ range(999999999) }}",
    ],
)
def test_a_template_that_fails_is_a_request_error(source):
    with pytest.raises(RequestError, match="the chat template t can't render"):
        ChatTemplate(source, name="t").render([{"role": "user", "content": "x"}])


def test_too_deep_json_is_a_request_error():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError, match="can't render"):
        ChatTemplate("{{ tools | tojson }}", name="t").render([], tools=[{"x": deep}])
    while deep:  # freed level by level: the interpreter's own way down is as deep as the list
        deep = deep[0]


def test_a_syntax_error_names_template_and_line():
    with pytest.raises(ConfigError, match=r"chat template some\.jinja, line 2: .*endfor"):
        ChatTemplate("x\n{% endfor %}", name="some.jinja")


def test_template_kwargs_may_not_replace_the_messages():
    with pytest.raises(RequestError, match="may not set 'messages'") as error:
        ChatTemplate(PLAIN, name="t").render([], template_kwargs={"messages": []})
    assert error.value.param == "chat_template_kwargs"


def test_nothing_to_continue():
    template = ChatTemplate(PLAIN, name="t")
    for messages in ([], [{"role": "assistant", "content": None}]):
        with pytest.raises(RequestError, match="continue_final_message needs a last message with text"):
            template.render(messages, continue_final_message=True)
    with pytest.raises(RequestError, match="drops the last message"):
        ChatTemplate("fixed", name="t").render([{"role": "user", "content": "x"}], continue_final_message=True)


def test_messages_are_left_unchanged():
    messages = copy.deepcopy(MESSAGES)
    messages[2]["tool_calls"][0]["function"]["arguments"] = json.dumps({"a": 1})
    before = copy.deepcopy(messages)
    ChatTemplate(FEATURES["calls"], name="t").render(messages)
    assert messages == before


def test_one_bos_whether_the_template_writes_it_or_not(tmp_path):
    write_internlm2_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("<|im_start|>user", add_special=False)
    assert encode_chat(tokenizer, "<|im_start|>user") == [1, *ids]
    assert encode_chat(tokenizer, "<s><|im_start|>user") == [1, *ids]
    tokenizer.prefix_ids = ()
    assert encode_chat(tokenizer, "<|im_start|>user") == ids


def test_stop_ids_are_the_stop_tokens_the_tokenizer_has(tmp_path):
    write_internlm2_tokenizer(tmp_path)
    template = ChatTemplate("", name="t", stop_tokens=["<|im_end|>", "two words", "<|action_end|>"])
    assert template.stop_ids(load_tokenizer(tmp_path)) == (510, 508)
