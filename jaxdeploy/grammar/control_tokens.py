"""Tokens that are marks rather than text: a grammar names them by id, and plain text never contains them."""

import re

from jaxdeploy.text.tokenizer import Tokenizer

# Added tokens may also be plain text (runs of spaces, digits); a mark without the special flag looks like <this> or [THIS].
_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Name to id of every special token, and of added tokens that look like a tag (Qwen's ``<tool_call>``)."""
    return {
        name: token
        for name, token in tokenizer.special_tokens.items()
        if token in tokenizer.special_ids or _MARK.fullmatch(name)
    }
