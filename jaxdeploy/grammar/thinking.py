"""A grammar that holds from where a model's thinking ends."""

import numpy as np

from jaxdeploy.engine.request import Constraint
from jaxdeploy.grammar.thinking_tags import ThinkingTags
from jaxdeploy.grammar.token_table import TokenTable

_GAP_TOKENS = 2  # tokens of newlines that may part the thinking from the answer, as models are trained to write
_NEWLINE = b"\n"


class AfterThinking:
    """A Constraint that leaves the thinking free, but for its end, and then holds the answer to ``inner``.

    While the model thinks, end tokens are not allowed (or an answer that must follow could be missing), nor tokens that
    hold the end tag and the beginning of the answer at once (``inner`` could not take half a token). Newlines in such a
    token, and after it, belong to neither part.

    Args:
        inner: the constraint on the answer, at its start.
        table: the vocabulary.
        tags: see ThinkingTags.
    """

    def __init__(self, inner: Constraint, table: TokenTable, tags: ThinkingTags):
        self._inner, self._table = inner, table
        self._begin, self._end = tags.begin.encode(), tags.end.encode()
        self._thinking_masks = _thinking_masks(table, self._end)
        self._state = "thinking" if tags.inside else "opening"
        self._text = b""  # of the tag that is being opened; then the end of the thinking so far
        self._gap = 0

    @property
    def thinking(self) -> bool:
        """True until the end tag has passed, or the answer has begun without thinking."""
        return self._state in ("opening", "thinking")

    def mask(self) -> np.ndarray | None:
        """See ``Constraint.mask``."""
        match self._state:
            case "thinking":
                return self._thinking_masks[_overlap(self._text, self._end)]
            case "opening" if self._text:
                return self._table.prefixes_of(self._begin[len(self._text) :])
            case "opening":
                return _either(self._inner.mask(), self._table.prefixes_of(self._begin))
            case "gap" if self._gap < _GAP_TOKENS:
                return _either(self._inner.mask(), self._table.newlines)
        return self._inner.mask()

    def advance(self, token: int) -> None:
        """See ``Constraint.advance``."""
        text = self._table.tokens[token]
        match self._state:
            case "thinking":
                self._think(text)
            case "opening" if self._opens(token, text):
                self._text += text
                if self._text == self._begin:
                    self._state, self._text = "thinking", b""
            case "gap" if self._gap < _GAP_TOKENS and text and not text.strip(_NEWLINE):
                self._gap += 1
            case _:
                self._state = "answer"
                self._inner.advance(token)

    def _opens(self, token: int, text: bytes) -> bool:
        if not text or not self._begin.startswith(self._text + text):
            return False
        # A piece of the tag may be what the answer begins with as well; then it is the answer.
        inner = self._inner.mask() if not self._text else None
        return inner is None or not inner[token // 32] >> np.uint32(token % 32) & 1

    def _think(self, text: bytes) -> None:
        self._text += text
        if self._end in self._text:
            self._state = "gap"
        else:
            self._text = self._text[-len(self._end) :]


def _either(first: np.ndarray | None, second: np.ndarray) -> np.ndarray | None:
    return None if first is None else first | second


def _overlap(text: bytes, tag: bytes) -> int:
    """Bytes of ``tag`` that ``text`` ends with."""
    return next(n for n in range(min(len(text), len(tag) - 1), -1, -1) if text.endswith(tag[:n]))


def _thinking_masks(table: TokenTable, end: bytes) -> list[np.ndarray]:
    """Words of what may come while n bytes of ``end`` stand at the end of the thinking, by n."""
    masks = table.thinking_masks.get(end)
    if masks is None:
        free = table.usable & ~table.ids_to_words(table.end_ids)
        masks = [free & ~table.ids_to_words(_beyond(table, end, n)) for n in range(len(end))]
        table.thinking_masks[end] = masks
    return masks


def _beyond(table: TokenTable, end: bytes, n: int) -> list[int]:
    """Tokens that complete ``end`` after its first n bytes and go on with more than newlines."""
    begun, rest = end[:n], end[n:]
    return [
        token
        for token, text in enumerate(table.tokens)
        if (text.startswith(rest) or end in text) and (begun + text).partition(end)[2].strip(_NEWLINE)
    ]
