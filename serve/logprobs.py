"""Log-probabilities in OpenAI's two shapes."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxdeploy.engine.request import TokenLogprobs
from jaxdeploy.text.detokenizer import IncrementalDetokenizer
from jaxdeploy.text.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON doesn't have."""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; half a character shows as U+FFFD."""
    return tokenizer.token_bytes(token).decode("utf-8", errors="replace")


def visible(tokenizer: Tokenizer, tokens: Iterable[TokenLogprobs]) -> list[TokenLogprobs]:
    """The tokens that make up the text: not the one that ended the answer, nor other special ones."""
    hidden = tokenizer.special_ids.union(tokenizer.eos_ids)
    return [token for token in tokens if token.token not in hidden]


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[TokenLogprobs]) -> list[dict[str, Any]]:
    """``choices[].logprobs.content`` of a chat completion."""
    return [
        _entry(tokenizer, token.token, token.logprob)
        | {"top_logprobs": [_entry(tokenizer, other, logprob) for other, logprob in token.top]}
        for token in tokens
    ]


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(token)),
    }


def finite(logprob: float) -> float:
    """A number that JSON can hold."""
    return max(float(logprob), IMPOSSIBLE)


class CompletionLogprobs:
    """The ``logprobs`` object of a text completion's choice, as it grows.

    Args:
        tokenizer: names the tokens.
        prompt_ids: what stands before the choice's text, if that text doesn't begin with it.
        skip_special: the text is without special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), skip_special: bool = True):
        self._tokenizer = tokenizer
        self._text = IncrementalDetokenizer(tokenizer, prompt_ids, skip_special)
        self._length = 0

    def block(self, tokens: Sequence[TokenLogprobs], first: int | None = None) -> dict[str, Any]:
        """The entries of the next tokens.

        Args:
            tokens: with their log-probabilities.
            first: a token that comes before them and has none, as the first of a prompt.
        """
        ids = [*([] if first is None else [first]), *(token.token for token in tokens)]
        unknown = [] if first is None else [None]
        return {
            "tokens": [token_text(self._tokenizer, token) for token in ids],
            "token_logprobs": [*unknown, *(finite(token.logprob) for token in tokens)],
            "top_logprobs": [*unknown, *(self._top(token) for token in tokens)],
            "text_offset": [self._offset(token) for token in ids],
        }

    def _offset(self, token: int) -> int:
        offset = self._length
        self._length += len(self._text.add([token]))
        return offset

    def _top(self, token: TokenLogprobs) -> dict[str, float]:
        top: dict[str, float] = {}
        for other, logprob in token.top:  # likeliest first; different tokens may have the same text
            top.setdefault(token_text(self._tokenizer, other), finite(logprob))
        return top


def joined_blocks(blocks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Blocks of one choice as a single one."""
    whole: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for block in blocks:
        for key, values in block.items():
            whole[key] += values
    return whole
