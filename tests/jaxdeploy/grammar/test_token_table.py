"""The vocabulary that llguidance sees."""

import numpy as np
import pytest
from support.byte_tokenizer import ByteTokenizer

from jaxdeploy.errors import ConfigError
from jaxdeploy.grammar.control_tokens import control_tokens
from jaxdeploy.grammar.token_table import TokenTable


def test_marks_are_control_tokens_and_other_added_tokens_are_text():
    tokenizer = ByteTokenizer(tags=["<tool_call>", "[ARGS]", "    ", "[a]", "<a b>"])
    assert set(control_tokens(tokenizer)) == {"<eos>", "<|im_end|>", "<tool_call>", "[ARGS]"}


def test_words_cover_the_models_vocabulary():
    table = TokenTable(ByteTokenizer(), vocab_size=333)
    assert table.words == 11
    assert table.ll_tokenizer.vocab_size == 333
    assert table.usable.shape == (11,)
    bits = np.unpackbits(table.usable.view(np.uint8), bitorder="little")
    assert not bits[ByteTokenizer().vocab_size :].any()
    assert not bits[0xFF]  # no text holds this byte


def test_smaller_model_than_tokenizer():
    tokenizer = ByteTokenizer(tags=["<late>"])
    table = TokenTable(tokenizer, vocab_size=tokenizer.vocab_size - 1)
    assert table.special_token_ids == sorted(tokenizer.eos_ids)


def test_end_ids_replace_the_tokenizers_own():
    table = TokenTable(ByteTokenizer(), vocab_size=300, end_ids=[5, 299, 300])
    assert table.end_ids == (5, 299)
    assert table.ll_tokenizer.eos_tokens == [5, 299]


def test_no_end_token_is_an_error():
    with pytest.raises(ConfigError, match="no end token"):
        TokenTable(ByteTokenizer(), vocab_size=10)


def test_text_becomes_the_tokenizers_own_tokens():
    tokenizer = ByteTokenizer(tags=["<tool_call>"])
    table = TokenTable(tokenizer, tokenizer.vocab_size)
    assert table('{"name') == tokenizer.encode('{"name', add_special=False)
    assert table.ll_tokenizer.tokenize_str('{"name') == table('{"name')


def test_a_mark_in_plain_text_is_spelled_out():
    table = TokenTable(ByteTokenizer(tags=["<tool_call>"]), 300)
    assert b"".join(table.tokens[token] for token in table("<tool_call>")) == b"<tool_call>"
    assert len(table("<tool_call>")) > 1


class _DummyPrefix(ByteTokenizer):
    """Puts a space in front of a text, as Llama 2's does."""

    def _encode(self, text: str) -> list[int]:
        return super()._encode(" " + text)


def test_a_space_that_the_tokenizer_adds_is_not_part_of_the_text():
    table = TokenTable(_DummyPrefix(), 300)
    assert table("name") == ByteTokenizer().encode("name", add_special=False)
