"""The tokenizer of a GGUF file, rebuilt from its metadata.

Keys are those of the GGUF specification (``tokenizer.ggml.*``). What each ``tokenizer.ggml.pre`` name stands for is
defined by llama.cpp's `src/llama-vocab.cpp`; where that only approximates the model's tokenizer.json, we do as
the latter does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from jaxdeploy.errors import CheckpointError
from jaxdeploy.text.hf_tokenizer import HfTokenizer
from jaxdeploy.text.sentencepiece_proto import PieceType, encode_bpe_model
from jaxdeploy.text.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxdeploy.text.tokenizer_config import AddedToken, TokenizerConfig

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)

# Control tokens that end an answer in one family or another; llama.cpp finds them by name too.
_END_NAMES = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>")
_END_KEYS = ("eot_token_id", "eom_token_id")


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """How a text is cut before byte-pair merges, and what comes with that choice."""

    build: Callable[[], Any]
    ignore_merges: bool = False  # a whole word in the vocabulary is taken as it is
    add_bos: bool = False
    nfc: bool = False


def _split(*patterns: str) -> Callable[[], Any]:
    """Cuts by each pattern in turn, then maps bytes to GPT-2's characters."""

    def build() -> Any:
        steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        return pre_tokenizers.Sequence([*steps, _byte_level(False)])

    return build


def _byte_level(use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level(True)])


_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2 = _PreTokenizer(lambda: _byte_level(True))
_SMOLLM = _PreTokenizer(_single_digits)
_LLAMA_BPE = _PreTokenizer(_split(_LLAMA3), ignore_merges=True, add_bos=True)
_TEKKEN_BPE = _PreTokenizer(_split(_TEKKEN), ignore_merges=True, add_bos=True)
_QWEN = _PreTokenizer(_split(_QWEN2), nfc=True)
_PRE_TOKENIZERS = {
    "default": _PreTokenizer(_split(r"[\p{P}$+<=>^~|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "refact": _SMOLLM,
    "command-r": _SMOLLM,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "falcon3": _LLAMA_BPE,
    "smaug-bpe": _PreTokenizer(_split(_LLAMA3)),
    "dbrx": _PreTokenizer(_split(_LLAMA3)),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "tekken": _TEKKEN_BPE,
    "pixtral": _TEKKEN_BPE,
}


def tokenizer_from_gguf(
    metadata: Mapping[str, Any], source: str = "GGUF metadata"
) -> HfTokenizer | SentencePieceTokenizer:
    """Rebuilds the tokenizer of a GGUF file.

    Args:
        metadata: the file's key-value pairs, arrays as sequences.
        source: name of the file, for messages.

    Returns:
        Byte-level BPE for ``tokenizer.ggml.model`` "gpt2", sentencepiece for "llama".

    Raises:
        CheckpointError: a key is missing or inconsistent, or the model or pre-tokenizer is unknown.
    """
    reader = _Reader(metadata, source)
    kind = reader.required("model")
    if kind == "gpt2":
        return _byte_pair(reader)
    if kind == "llama":
        return _sentencepiece(reader)
    raise CheckpointError(f"{source}: tokenizer.ggml.model {kind!r} is not supported; known: 'gpt2', 'llama'")


class _Reader:
    """The ``tokenizer.ggml.*`` keys with the checks that both kinds share."""

    def __init__(self, metadata: Mapping[str, Any], source: str):
        self._metadata = metadata
        self.source = source
        self.tokens: list[str] = [str(token) for token in self.required("tokens")]
        self.types = [
            PieceType(int(kind) or PieceType.NORMAL) for kind in self.parallel("token_type", PieceType.NORMAL)
        ]

    def get(self, key: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def required(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.source}: key tokenizer.ggml.{key} is missing")
        return value

    def parallel(self, key: str, default: float) -> list[Any]:
        """An array with one entry per token."""
        values = self.get(key)
        if values is None:
            return [default] * len(self.tokens)
        if len(values) != len(self.tokens):
            raise CheckpointError(
                f"{self.source}: tokenizer.ggml.{key} has {len(values)} entries for {len(self.tokens)} tokens"
            )
        return list(values)

    def token_of(self, key: str) -> str | None:
        token = self.get(key)
        if token is None:
            return None
        if not 0 <= int(token) < len(self.tokens):
            raise CheckpointError(
                f"{self.source}: tokenizer.ggml.{key} is {token}, but there are {len(self.tokens)} tokens"
            )
        return self.tokens[int(token)]

    def config(self, default_add_bos: bool) -> TokenizerConfig:
        added = tuple(
            AddedToken(content, token, special=kind != PieceType.USER_DEFINED)
            for token, (content, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED) and content
        )
        ids = {token.content: token.token_id for token in added if token.special}
        names = [self.token_of(key) for key in _END_KEYS] + list(_END_NAMES)
        ends = [ids[name] for name in names if name is not None and name in ids]
        add_bos = self.get("add_bos_token")
        return TokenizerConfig(
            bos_token=self.token_of("bos_token_id"),
            eos_token=self.token_of("eos_token_id"),
            added_tokens=added,
            add_bos=default_add_bos if add_bos is None else bool(add_bos),
            add_eos=bool(self.get("add_eos_token")),
            generation_eos_ids=tuple(end for end in dict.fromkeys(ends) if end is not None),
            chat_template=self._metadata.get("tokenizer.chat_template"),
        )


def _byte_pair(reader: _Reader) -> HfTokenizer:
    name = reader.get("pre") or "default"
    pre = _PRE_TOKENIZERS.get(name)
    if pre is None:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise CheckpointError(
            f"{reader.source}: pre-tokenizer tokenizer.ggml.pre = {name!r} is not known; known: {known}"
        )
    merges = []
    for merge in reader.required("merges"):
        left, space, right = str(merge).partition(" ")
        if not (left and space and right):
            raise CheckpointError(f"{reader.source}: tokenizer.ggml.merges holds {merge!r}, expected two tokens")
        merges.append((left, right))
    vocabulary = {token: i for i, token in enumerate(reader.tokens)}
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"{reader.source}: tokenizer.ggml.merges do not fit the tokens: {error}") from None
    backend = Tokenizer(model)
    # The attributes are typed by the wrong classes in the library's stubs.
    backend.pre_tokenizer = pre.build()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if pre.nfc:
        backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    return HfTokenizer(backend, reader.config(pre.add_bos), reader.source)


def _sentencepiece(reader: _Reader) -> SentencePieceTokenizer:
    scores = [float(score) for score in reader.parallel("scores", 0.0)]
    add_space = reader.get("add_space_prefix")
    model = encode_bpe_model(
        list(zip(reader.tokens, scores, reader.types, strict=True)),
        add_dummy_prefix=True if add_space is None else bool(add_space),
        remove_extra_whitespaces=bool(reader.get("remove_extra_whitespaces")),
    )
    return SentencePieceTokenizer(model, reader.config(True), reader.source)
