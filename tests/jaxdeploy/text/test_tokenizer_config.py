import json

import pytest

from jaxdeploy.errors import CheckpointError
from jaxdeploy.text.tokenizer_config import AddedToken, TokenizerConfig, read_tokenizer_config


def write(directory, name: str, value) -> None:
    (directory / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_nothing_there_gives_the_defaults(tmp_path):
    assert read_tokenizer_config(tmp_path) == TokenizerConfig()


def test_added_tokens_of_all_files_are_merged(tmp_path):
    decoder = {"9": {"content": "<b>", "special": False, "rstrip": True}, "3": {"content": "<a>", "special": True}}
    write(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": decoder, "bos_token": {"content": "<b>"}})
    write(tmp_path, "added_tokens.json", {"<c>": 7, "<a>": 3})
    write(tmp_path, "special_tokens_map.json", {"eos_token": "<e>", "additional_special_tokens": ["<d>"]})
    config = read_tokenizer_config(tmp_path)
    assert config.added_tokens == (
        AddedToken("<a>", 3),
        AddedToken("<c>", 7, special=False),
        AddedToken("<b>", 9, special=True, rstrip=True),
        AddedToken("<e>"),
        AddedToken("<d>"),
    )
    assert (config.bos_token, config.eos_token) == ("<b>", "<e>")


def test_chat_template_file_wins_over_the_configuration(tmp_path):
    write(tmp_path, "tokenizer_config.json", {"chat_template": "in json"})
    assert read_tokenizer_config(tmp_path).chat_template == "in json"
    write(tmp_path, "chat_template.jinja", "in a file")
    assert read_tokenizer_config(tmp_path).chat_template == "in a file"


def test_of_several_templates_the_default_is_taken(tmp_path):
    templates = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": templates})
    assert read_tokenizer_config(tmp_path).chat_template == "D"


def test_eos_ids_may_be_one_or_several(tmp_path):
    write(tmp_path, "generation_config.json", {"eos_token_id": 4})
    assert read_tokenizer_config(tmp_path).generation_eos_ids == (4,)
    write(tmp_path, "generation_config.json", {"eos_token_id": [4, 5]})
    assert read_tokenizer_config(tmp_path).generation_eos_ids == (4, 5)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("tokenizer_config.json", "{", "is not JSON"),
        ("special_tokens_map.json", "[]", "holds a list, expected a JSON object"),
        ("tokenizer_config.json", {"bos_token": 3}, "a token must be a string"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, r"added_tokens_decoder\['x'\]"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template must be a string"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "eos_token_id must be an id"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, value, reason):
    write(tmp_path, name, value)
    with pytest.raises(CheckpointError, match=reason) as error:
        read_tokenizer_config(tmp_path)
    assert name in str(error.value)
