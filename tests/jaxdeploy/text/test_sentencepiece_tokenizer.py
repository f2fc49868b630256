import json
from dataclasses import replace

import pytest
import sentencepiece
from hypothesis import given, settings
from support.internlm2_tokenizer import (
    INTERNLM2_SPECIAL_TOKENS,
    internlm2_special_ids,
    train_sentencepiece,
    write_internlm2_tokenizer,
)
from support.text_strategies import ANY_TEXT

from jaxdeploy.errors import CheckpointError, RequestError
from jaxdeploy.text.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxdeploy.text.tokenizer import load_tokenizer
from jaxdeploy.text.tokenizer_config import AddedToken, TokenizerConfig

SEP = TokenizerConfig(added_tokens=(AddedToken("<sep>"),))


@pytest.fixture(scope="module")
def internlm2(tmp_path_factory):
    directory = tmp_path_factory.mktemp("internlm2")
    write_internlm2_tokenizer(directory)
    return load_tokenizer(directory)


def spaced(config: TokenizerConfig = SEP) -> SentencePieceTokenizer:
    """A tokenizer whose model puts a space in front of a text."""
    return SentencePieceTokenizer(train_sentencepiece(add_dummy_prefix=True), config, "tokenizer.model")


def test_special_tokens_have_the_last_ids_and_take_over_their_pieces(internlm2):
    assert internlm2.vocab_size == 512
    ids = internlm2_special_ids()
    assert [ids[token] for token in INTERNLM2_SPECIAL_TOKENS] == [506, 507, 508, 509, 510, 511]
    for token, token_id in ids.items():
        assert internlm2.special_tokens[token] == token_id
        assert internlm2.id_to_token(token_id) == token
        assert internlm2.token_to_id(token) == token_id
    # The unused piece that sat on <|im_start|>'s id can no longer be reached by name.
    assert internlm2.token_to_id("[UNUSED_TOKEN_111]") is None
    assert internlm2.token_to_id("[UNUSED_TOKEN_0]") == 400
    assert internlm2.token_to_id("no such piece") is None
    assert internlm2.id_to_token(512) is None


def test_real_vocabulary_size_gives_internlm2s_own_ids(tmp_path):
    write_internlm2_tokenizer(tmp_path, vocab_size=92544)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 92544
    assert tokenizer.encode("<|im_start|><|im_end|><|action_start|><|action_end|>", add_special=False) == [
        92543,
        92542,
        92541,
        92540,
    ]
    assert tokenizer.encode("<|interpreter|><|plugin|>", add_special=False) == [92539, 92538]


def test_bos_is_added_by_default_and_eos_is_not(internlm2):
    bare = internlm2.encode("the fox", add_special=False)
    assert internlm2.encode("the fox", add_special=True) == [1, *bare]
    assert internlm2.adds_bos
    assert (internlm2.bos_id, internlm2.bos_token, internlm2.eos_token) == (1, "<s>", "</s>")
    assert internlm2.eos_ids == (2, 510)


def test_configuration_switches_bos_off_and_eos_on():
    model = train_sentencepiece()
    config = TokenizerConfig(add_bos=False, add_eos=True)
    tokenizer = SentencePieceTokenizer(model, config, "m")
    bare = tokenizer.encode("the", add_special=False)
    assert tokenizer.encode("the", add_special=True) == [*bare, 2]
    assert not tokenizer.adds_bos


def test_stretches_between_special_tokens_are_encoded_by_sentencepiece(internlm2):
    model = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece())
    start, end = internlm2.special_tokens["<|im_start|>"], internlm2.special_tokens["<|im_end|>"]
    expected = [1, start, *model.encode("user\nthe  fox"), end, *model.encode("\n")]
    assert internlm2.encode("<s><|im_start|>user\nthe  fox<|im_end|>\n", add_special=False) == expected


def test_decode_leaves_special_tokens_out_or_shows_them(internlm2):
    ids = internlm2.encode("<|im_start|>user\nthe fox<|im_end|>", add_special=True)
    assert internlm2.decode(ids) == "user\nthe fox"
    assert internlm2.decode(ids, skip_special=False) == "<s><|im_start|>user\nthe fox<|im_end|>"


def test_byte_pieces_decode_to_characters_and_broken_ones_to_replacement(internlm2):
    ids = internlm2.encode("好", add_special=False)
    assert [internlm2.token_bytes(token) for token in ids] == [bytes([byte]) for byte in "好".encode()]
    assert internlm2.decode(ids) == "好"
    assert internlm2.decode(ids[:2]) == "�"
    assert internlm2.token_bytes(-1) == internlm2.token_bytes(512) == b""


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_decoding_gives_back_any_text(internlm2, text):
    assert internlm2.decode(internlm2.encode(text, add_special=False), skip_special=False) == text
    tokenizer = spaced()
    assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_decode_agrees_with_sentencepiece(text):
    model = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece(add_dummy_prefix=True))
    tokenizer = spaced()
    ids = tokenizer.encode(text, add_special=False)
    if not any(token in text for token in tokenizer.special_tokens):
        assert ids == model.encode(text)
        assert tokenizer.decode(ids) == model.decode(ids)


def test_legacy_puts_a_space_in_front_of_every_stretch():
    tokenizer = spaced()
    ids = tokenizer.encode("the<sep>the", add_special=False)
    assert [tokenizer.id_to_token(token) for token in ids] == ["▁the", "<sep>", "▁the"]
    assert tokenizer.decode(ids, skip_special=False) == "the<sep>the"


def test_without_legacy_only_the_first_stretch_gets_a_space():
    tokenizer = spaced(replace(SEP, legacy=False))
    ids = tokenizer.encode("the<sep>the", add_special=False)
    assert [tokenizer.id_to_token(token) for token in ids] == ["▁the", "<sep>", "t", "he"]
    assert tokenizer.decode(ids, skip_special=False) == "the<sep>the"
    ids = tokenizer.encode("<sep>the", add_special=False)
    assert [tokenizer.id_to_token(token) for token in ids] == ["<sep>", "t", "he"]


def test_added_tokens_without_ids_are_appended_in_order():
    tokens = (AddedToken("<b>"), AddedToken("<a>", special=False))
    tokenizer = SentencePieceTokenizer(train_sentencepiece(), TokenizerConfig(added_tokens=tokens), "m")
    assert (tokenizer.special_tokens["<b>"], tokenizer.special_tokens["<a>"]) == (400, 401)
    assert tokenizer.vocab_size == 402
    assert 400 in tokenizer.special_ids
    assert 401 not in tokenizer.special_ids
    assert tokenizer.decode([400, 401]) == "<a>"


def test_longest_added_token_wins_and_stripping_tokens_swallow_spaces():
    tokens = (AddedToken("<x>"), AddedToken("<x><y>"), AddedToken("<m>", lstrip=True, rstrip=True))
    tokenizer = SentencePieceTokenizer(train_sentencepiece(), TokenizerConfig(added_tokens=tokens), "m")
    assert tokenizer.encode("<x><y><x>", add_special=False) == [401, 400]
    the = tokenizer.token_to_id("▁the")
    assert tokenizer.encode(" the \n<m>  ", add_special=False) == [the, 402]


def test_two_added_tokens_on_one_id_are_refused():
    tokens = (AddedToken("<x>", 401), AddedToken("<y>", 401))
    with pytest.raises(CheckpointError, match=r"some\.model: id 401 is claimed by '<x>' and '<y>'"):
        SentencePieceTokenizer(train_sentencepiece(), TokenizerConfig(added_tokens=tokens), "some.model")


def test_added_tokens_json_is_read(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 405}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<tool>", add_special=False) == [405]
    assert 405 not in tokenizer.special_ids


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a sentencepiece model"):
        load_tokenizer(tmp_path)


def test_lone_surrogates_are_refused(internlm2):
    with pytest.raises(RequestError, match=r"lone surrogate '\\ud800' at character 2"):
        internlm2.encode("ab\ud800", add_special=False)
