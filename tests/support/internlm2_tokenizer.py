"""A small tokenizer of InternLM2's kind: a sentencepiece model without a tokenizer.json."""

import functools
import io
import json
from pathlib import Path

import sentencepiece

from jaxdeploy.text.sentencepiece_proto import PieceType, encode_pieces

# In the order of their ids, which are the last six of the vocabulary (92538..92543 in the real one).
INTERNLM2_SPECIAL_TOKENS = (
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
)
_TRAINED_PIECES = 400  # 3 control pieces, 256 bytes, the letters of the text below and some merges

_TRAINING_TEXT = """\
The quick brown fox jumps over the lazy dog while the sun goes down behind the hills.
A language model reads the words that came before and guesses the word that comes next.
system user assistant environment plugin interpreter name role content tool function parameters
{"name": "add", "parameters": {"a": 3, "b": 5}} [{"type": "object", "properties": {}, "required": []}]
Compute the sum of three and five, then multiply the result by two and give the answer.
What is the capital of France? The capital of France is Paris, and the river is the Seine.
0 1 2 3 4 5 6 7 8 9 10 11 12 + - * / = ( ) < > ! ? . , ; : ' "
Keys and values live in pages; every page holds as many tokens as the cache block is long.
She said that they would have been there if the train had not been late again that morning.
"""


@functools.cache
def train_sentencepiece(add_dummy_prefix: bool = False, model_type: str = "bpe") -> bytes:
    """Bytes of a model with byte fallback, trained on a few lines of English; `<unk>` 0, `<s>` 1, `</s>` 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TRAINING_TEXT.splitlines()),
        model_writer=model,
        vocab_size=_TRAINED_PIECES,
        model_type=model_type,
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def internlm2_special_ids(vocab_size: int = 512) -> dict[str, int]:
    """Ids of InternLM2's six special tokens in a vocabulary of that size."""
    first = vocab_size - len(INTERNLM2_SPECIAL_TOKENS)
    return {token: first + i for i, token in enumerate(INTERNLM2_SPECIAL_TOKENS)}


def write_internlm2_tokenizer(directory: Path, vocab_size: int = 512, *, add_dummy_prefix: bool = False) -> None:
    """Writes tokenizer.model, tokenizer_config.json, special_tokens_map.json and generation_config.json.

    As in the real checkpoints, the sentencepiece model covers the whole vocabulary, its last six pieces are unused ones
    that the special tokens take over, and the tokenizer's class is code that is not there to be run.

    Args:
        directory: made if missing.
        vocab_size: at least 406; 92544 gives the special tokens their real ids.
        add_dummy_prefix: the model puts a space in front of a text.
    """
    model = train_sentencepiece(add_dummy_prefix)
    trained = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    specials = internlm2_special_ids(vocab_size)
    if trained + len(specials) > vocab_size:
        raise ValueError(f"{vocab_size=} must be at least {trained + len(specials)}")
    unused = [(f"[UNUSED_TOKEN_{i}]", 0.0, PieceType.NORMAL) for i in range(vocab_size - trained)]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model + encode_pieces(unused))
    added = {"<unk>": 0, "<s>": 1, "</s>": 2, **specials}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token): {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "special": True}
            for content, token in added.items()
        },
        "additional_special_tokens": list(reversed(specials)),
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "decode_with_prefix_space": False,
        "eos_token": "</s>",
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    _write_json(directory / "generation_config.json", {"eos_token_id": [2, specials["<|im_end|>"]]})


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
