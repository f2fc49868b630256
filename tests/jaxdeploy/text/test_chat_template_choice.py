import json

import pytest
from support.internlm2_tokenizer import write_internlm2_tokenizer

from jaxdeploy.errors import CheckpointError, ConfigError, RequestError
from jaxdeploy.text.chat_template_choice import choose_chat_template
from jaxdeploy.text.tokenizer import load_tokenizer

HI = [{"role": "user", "content": "Hi"}]
TALK = [*HI, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "So?"}]
PIECES = {
    "model_name": "my own",
    "system": "[S]",
    "meta_instruction": "Be kind.",
    "eosys": "[/S]",
    "user": "[U]",
    "eoh": "[/U]",
    "assistant": "[A]",
    "eoa": "[/A]",
    "tool": "[T]",
    "eotool": "[/T]",
    "separator": "\n",
    "capability": "chat",
    "stop_words": ["[/A]"],
}


@pytest.fixture
def tokenizer(tmp_path):
    write_internlm2_tokenizer(tmp_path / "model")
    return load_tokenizer(tmp_path / "model")


def write(tmp_path, name: str, value) -> str:
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def test_internlm2_gets_its_own_even_if_the_checkpoint_has_one(tokenizer):
    tokenizer.chat_template = "the checkpoint's"
    assert choose_chat_template("internlm2", tokenizer, None).name == "internlm2"
    assert choose_chat_template("llama", tokenizer, None).render(HI) == "the checkpoint's"


def test_checkpoint_template_sees_bos_and_eos(tokenizer):
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    template = choose_chat_template("llama", tokenizer, None)
    assert template.render(HI) == "<s>Hi</s>"
    assert not template.is_base


def test_without_any_template_contents_are_put_together(tokenizer):
    template = choose_chat_template("llama", tokenizer, None)
    assert template.is_base
    assert template.render(TALK) == "HiHoSo?"
    assert template.stop_tokens == ()


def test_built_in_by_name(tokenizer):
    chatml = choose_chat_template("llama", tokenizer, "chatml")
    assert chatml.render(TALK) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
        "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chatml.stop_tokens == ("<|im_end|>",)
    assert choose_chat_template("internlm2", tokenizer, "base").is_base


def test_jinja_file(tokenizer, tmp_path):
    path = write(tmp_path, "mine.jinja", "{{ bos_token }}{% for m in messages %}({{ m.content }}){% endfor %}")
    assert choose_chat_template("internlm2", tokenizer, path).render(TALK) == "<s>(Hi)(Ho)(So?)"


def test_json_file_renders_as_lmdeploy_does(tokenizer, tmp_path):
    template = choose_chat_template("llama", tokenizer, write(tmp_path, "t.json", PIECES))
    assert template.render(TALK) == "[S]Be kind.[/S][U]Hi[/U][A]Ho[/A]\n[U]So?[/U][A]"
    system = {"role": "system", "content": "Be quick."}
    assert template.render([system, *HI]) == "[S]Be quick.[/S][U]Hi[/U][A]"
    assert template.render([*HI, {"role": "tool", "content": "8"}]) == "[S]Be kind.[/S][U]Hi[/U][T]8[/T][A]"
    # An answer at the end is the prefix of the next one.
    assert template.render(TALK[:2]) == "[S]Be kind.[/S][U]Hi[/U][A]Ho"
    assert template.stop_tokens == ("[/A]",)
    with pytest.raises(RequestError, match="role robot is not one of system"):
        template.render([{"role": "robot", "content": ""}])


def test_json_defaults_are_empty_and_write_an_empty_system_turn(tokenizer, tmp_path):
    pieces = {"model_name": "x", "system": "[S]", "eosys": "[/S]", "user": None}
    template = choose_chat_template("llama", tokenizer, write(tmp_path, "t.json", pieces))
    assert template.render(HI) == "[S][/S]Hi"


def test_json_may_start_from_internlm2(tokenizer, tmp_path):
    pieces = {"model_name": "internlm2", "meta_instruction": "Be kind."}
    template = choose_chat_template("llama", tokenizer, write(tmp_path, "t.json", pieces))
    assert template.render(HI) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.stop_tokens == ("<|im_end|>", "<|action_end|>")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("t.json", "{", "is not JSON"),
        ("t.json", "[1]", "holds a list, expected a JSON object"),
        ("t.json", {"sytem": "x"}, r"has the unknown key 'sytem'; known: system, meta_instruction"),
        ("t.json", {"user": 3}, "user must be a string, found 3"),
        ("t.json", {"stop_words": "x"}, "stop_words must be a list of non-empty strings"),
        ("t.json", {"stop_words": [""]}, "stop_words must be a list of non-empty strings"),
        ("t.jinja", "{% if %}", "line 1"),
    ],
)
def test_bad_files_are_named_with_the_reason(tokenizer, tmp_path, name, value, reason):
    path = write(tmp_path, name, value)
    with pytest.raises(ConfigError, match=reason) as error:
        choose_chat_template("llama", tokenizer, path)
    assert path in str(error.value)


def test_unreadable_file_is_named(tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"t\.jinja can't be read"):
        choose_chat_template("llama", tokenizer, str(tmp_path / "t.jinja"))


def test_a_name_that_is_nothing_lists_what_there_is(tokenizer):
    with pytest.raises(ConfigError, match=r"'chatlm' is neither a built-in one \(internlm2, chatml, base\) nor a file"):
        choose_chat_template("llama", tokenizer, "chatlm")


def test_a_bad_checkpoint_template_is_the_checkpoints_fault(tokenizer):
    tokenizer.chat_template = "{% for %}"
    with pytest.raises(CheckpointError, match=r"chat template of the checkpoint, line 1: .*; pass --chat-template"):
        choose_chat_template("llama", tokenizer, None)
