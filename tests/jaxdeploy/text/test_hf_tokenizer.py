import json

import pytest
import tokenizers
from hypothesis import given, settings
from support.internlm2_tokenizer import train_sentencepiece
from support.text_strategies import ANY_TEXT
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxdeploy.errors import CheckpointError
from jaxdeploy.text.hf_tokenizer import HfTokenizer, load_hf_tokenizer
from jaxdeploy.text.tokenizer import load_tokenizer
from jaxdeploy.text.tokenizer_config import AddedToken, TokenizerConfig

LINES = ["the quick brown fox jumps over the lazy dog", "What is the capital of France?", "3 + 5 = 8"]


def byte_level(with_bos: bool = False) -> tokenizers.Tokenizer:
    """A small tokenizer of the Llama 3 / Qwen kind."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    backend.add_tokens([tokenizers.AddedToken("<tool_call>", special=False, normalized=False)])
    if with_bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return backend


def llama2_like() -> tokenizers.Tokenizer:
    """A tokenizer.json of the Llama 2 kind: byte fallback, a space in front, which decoding strips."""
    vocab = {"<unk>": 0, "<s>": 1} | {f"<0x{i:02X}>": i + 2 for i in range(256)}
    vocab |= {piece: 258 + i for i, piece in enumerate(["▁", "t", "h", "e", "he", "the", "▁the", "<sep>"])}
    merges = [("h", "e"), ("t", "he"), ("▁", "the")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<s>", "<sep>"])
    return backend


def write(directory, backend, config: dict) -> None:
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


CONFIGS = [
    {"bos_token": "<bos>", "eos_token": "<eos>"},
    {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True, "add_eos_token": True},
    {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": False, "add_eos_token": False},
    {
        "bos_token": None,
        "eos_token": "<eos>",
        "additional_special_tokens": ["<extra>"],
        "added_tokens_decoder": {"0": {"content": "<bos>", "special": True}},
    },
]


@pytest.mark.parametrize("with_bos", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_agrees_with_transformers(tmp_path, config, with_bos):
    from transformers import PreTrainedTokenizerFast

    write(tmp_path, byte_level(with_bos), {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    ours, theirs = load_hf_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    for text in ("the fox", "", "<bos>the <tool_call>{}<eos>", "好 🙂\n\n x", "<extra>", " a  b "):
        for special in (False, True):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special=special) == ids
            assert ours.decode(ids, skip_special=special) == theirs.decode(ids, skip_special_tokens=special)
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens == theirs.added_tokens_encoder


def test_special_and_added_tokens_are_told_apart(tmp_path):
    write(tmp_path, byte_level(), CONFIGS[0])
    tokenizer = load_tokenizer(tmp_path)
    call = tokenizer.special_tokens["<tool_call>"]
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.decode([0, call, 1]) == "<tool_call>"
    assert tokenizer.decode([0, call, 1], skip_special=False) == "<bos><tool_call><eos>"
    assert (tokenizer.id_to_token(call), tokenizer.token_to_id("<tool_call>")) == ("<tool_call>", call)
    assert tokenizer.id_to_token(-1) is tokenizer.id_to_token(10_000) is None


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_decoding_gives_back_any_text(text):
    for tokenizer in TOKENIZERS:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_decode_agrees_with_the_backend(text):
    for tokenizer, backend in zip(TOKENIZERS, BACKENDS, strict=True):
        ids = tokenizer.encode(text, add_special=False)
        assert tokenizer.decode(ids) == backend.decode(ids, skip_special_tokens=True)


BACKENDS = [byte_level(), llama2_like()]
TOKENIZERS = [HfTokenizer(backend, TokenizerConfig(), "tokenizer.json") for backend in BACKENDS]


def test_token_bytes_of_byte_fallback_and_space():
    tokenizer = TOKENIZERS[1]
    assert tokenizer.token_bytes(2 + 0xE5) == b"\xe5"
    assert tokenizer.token_bytes(tokenizer.token_to_id("▁the")) == b" the"
    assert tokenizer.token_bytes(tokenizer.token_to_id("<sep>")) == b"<sep>"
    assert tokenizer.decode(tokenizer.encode("the", add_special=False)) == "the"


def test_metaspace_decoder():
    backend = tokenizers.Tokenizer(models.BPE(vocab={"▁the": 0, "▁": 1, "t": 2, "x": 3}, merges=[]))
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = HfTokenizer(backend, TokenizerConfig(), "tokenizer.json")
    for ids in ([0, 0, 3], [3, 0], [1, 1, 3]):
        assert tokenizer.decode(ids) == backend.decode(ids)


def test_no_decoder_joins_words_with_spaces():
    backend = tokenizers.Tokenizer(models.WordLevel(vocab={"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer = HfTokenizer(backend, TokenizerConfig(), "tokenizer.json")
    assert tokenizer.decode([0, 1, 0]) == backend.decode([0, 1, 0]) == "a b a"


def test_unknown_decoder_is_named():
    backend = byte_level()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match=r"dir/tokenizer\.json: decoder step .*WordPiece.* is not supported"):
        HfTokenizer(backend, TokenizerConfig(), "dir/tokenizer.json")


def test_added_token_with_a_wrong_id_is_refused():
    config = TokenizerConfig(added_tokens=(AddedToken("<bos>", 7),))
    with pytest.raises(CheckpointError, match=r"gives '<bos>' the id 0, tokenizer_config\.json expects 7"):
        HfTokenizer(byte_level(), config, "tokenizer.json")


def test_eos_ids_come_from_generation_config_too(tmp_path):
    write(tmp_path, byte_level(), CONFIGS[0])
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 1, 6]}')
    assert load_tokenizer(tmp_path).eos_ids == (1, 5, 6)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=64)
    write(tmp_path, backend, {})
    assert load_tokenizer(tmp_path).encode("the lazy dog", add_special=False) == TOKENIZERS[0].encode(
        "the lazy dog", add_special=False
    )


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json can't be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_is_preferred_and_an_empty_directory_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer: expected tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    write(tmp_path, byte_level(), {})
    assert isinstance(load_tokenizer(tmp_path), HfTokenizer)
