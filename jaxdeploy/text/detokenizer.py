"""Text of a growing sequence of tokens."""

import codecs
from collections.abc import Iterable, Sequence

from jaxdeploy.text.tokenizer import Tokenizer

_UTF8_MAX_BYTES = 4


class IncrementalDetokenizer:
    """Turns new tokens into new text, never half a character.

    All that ``add`` and ``flush`` return, put together, is the text that the tokens add to the prompt's. Each token
    costs the same however long the sequence is: tokens give bytes, and a UTF-8 decoder keeps the bytes (at most three)
    of a character that is not complete. What can no longer become a character is U+FFFD.

    Args:
        tokenizer: gives the bytes.
        prompt_ids: what stands before; its end decides about a leading space and may hold half a character.
        skip_special: leave out special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special: bool):
        self._tokenizer = tokenizer
        self._skipped: frozenset[int] = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._previous: int | None = None
        tail: list[int] = []
        tail_bytes = 0
        for token in reversed(prompt_ids):
            if token not in self._skipped:
                tail.append(token)
                tail_bytes += len(tokenizer.token_bytes(token))
            if tail_bytes >= _UTF8_MAX_BYTES:
                break
        self.add(reversed(tail))

    def add(self, ids: Iterable[int]) -> str:
        """The text that became certain with these tokens; may be empty."""
        new = bytearray()
        for token in ids:
            if token in self._skipped:
                continue
            new += self._tokenizer.text_bytes(token, self._previous)
            self._previous = token
        return self._utf8.decode(bytes(new))

    def flush(self) -> str:
        """The rest at the end of the sequence: U+FFFD for a character that stayed incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)
