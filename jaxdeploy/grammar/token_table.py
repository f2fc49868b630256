"""The vocabulary as llguidance needs it."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from llguidance import LLTokenizer

from jaxdeploy.errors import ConfigError
from jaxdeploy.grammar.control_tokens import control_tokens
from jaxdeploy.text.tokenizer import Tokenizer

_MARKER = 0xFF  # llguidance puts this byte before special tokens; no UTF-8 text has it
_ANCHOR = "\n"  # a text is tokenized behind this one where the tokenizer would put a space in front of it


class TokenTable:
    """Bytes of every token, and llguidance's trie over them. Building it takes about a second per 150,000 tokens.

    The first group of attributes is what ``LLTokenizer`` reads off the object it is given.

    Args:
        tokenizer: the model's.
        vocab_size: rows of the model's embedding; ids that no token has are never allowed.
        end_ids: what ends an answer; the tokenizer's own where empty.

    Attributes:
        tokens: bytes by id, empty where an id has no text.
        special_token_ids: see ``control_tokens``.
        end_ids: tokens that a finished grammar allows.
        words: uint32 words of a mask.
        thinking_masks: kept for ``AfterThinking``, by end tag.
        ll_tokenizer: for ``LLMatcher``.

    Raises:
        ConfigError: nothing could end an answer.
    """

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Iterable[int] = ()):
        self._tokenizer = tokenizer
        known = min(vocab_size, tokenizer.vocab_size)
        control = frozenset(control_tokens(tokenizer).values())
        self.tokens = [tokenizer.token_bytes(token) for token in range(known)] + [b""] * (vocab_size - known)
        for token, text in enumerate(self.tokens):
            # Byte 0xFF can't stand in a text, but would pass for llguidance's own marker.
            if text[:1] == bytes([_MARKER]) and token not in control:
                self.tokens[token] = b""
        ends = tuple(sorted({token for token in end_ids or tokenizer.eos_ids if 0 <= token < vocab_size}))
        if not ends:
            raise ConfigError("the model names no end token, so no answer could follow a grammar and end; name one")
        self.end_ids = ends
        self.special_token_ids = sorted({token for token in control if token < vocab_size}.union(ends))
        self.eos_token_id = ends[0]
        self.bos_token_id = tokenizer.bos_id
        self.vocab_size = vocab_size
        self.words = -(-vocab_size // 32)
        self.thinking_masks: dict[bytes, list[np.ndarray]] = {}
        self._prefixes: dict[bytes, np.ndarray] = {}
        self.ll_tokenizer = LLTokenizer(self, eos_token=list(ends))  # pyright: ignore[reportArgumentType]

    def __call__(self, text: str) -> list[int]:
        """Tokens that spell a plain text exactly, in the tokenizer's own way where it has one."""
        for anchor in ("", _ANCHOR):
            ids = self._tokenizer.encode(anchor + text, add_special=False)
            head = len(self._tokenizer.encode(anchor, add_special=False)) if anchor else 0
            if self._spells(ids[head:], text):
                return ids[head:]
        return self.ll_tokenizer.greedy_tokenize(text)

    def ids_to_words(self, ids: Iterable[int]) -> np.ndarray:
        """uint32 [words] with the bits of ``ids`` set, bit i of word w being token 32 w + i."""
        bits = np.zeros(self.words * 32, bool)
        bits[list(ids)] = True
        return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)

    @cached_property
    def usable(self) -> np.ndarray:
        """Words of every token that has text or ends an answer."""
        return self.ids_to_words([i for i, text in enumerate(self.tokens) if text]) | self.ids_to_words(self.end_ids)

    @cached_property
    def newlines(self) -> np.ndarray:
        """Words of the tokens that are newlines and nothing else."""
        return self.ids_to_words([i for i, text in enumerate(self.tokens) if text and not text.strip(b"\n")])

    def prefixes_of(self, text: bytes) -> np.ndarray:
        """Words of the tokens that ``text`` begins with."""
        if text not in self._prefixes:
            ids = [i for i, token in enumerate(self.tokens) if token and text.startswith(token)]
            self._prefixes[text] = self.ids_to_words(ids)
        return self._prefixes[text]

    def _spells(self, ids: list[int], text: str) -> bool:
        known = all(0 <= token < self.vocab_size and token not in self._control for token in ids)
        return known and b"".join(self.tokens[token] for token in ids) == text.encode()

    @cached_property
    def _control(self) -> frozenset[int]:
        return frozenset(self.special_token_ids)
