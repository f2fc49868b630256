"""Takes the texts of special tokens out of an answer, but not those that its parsers look for."""

import re
from collections.abc import Iterable


class SpecialTokenFilter:
    """Drops texts from a stream of text. What comes out depends on the whole text alone, never on how it was cut.

    The engine's own ``skip_special_tokens`` would drop a tool call's tags with the rest, so it is off where a parser needs
    them.

    Args:
        dropped: the texts; none may begin another.
    """

    def __init__(self, dropped: Iterable[str]):
        texts = [text for text in dropped if text]
        self._pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        self._starts = {text[:end] for text in texts for end in range(1, len(text))}
        self._longest = max(map(len, texts), default=1) - 1
        self._held = ""

    def feed(self, text: str) -> str:
        """Takes the next piece; returns what is certain."""
        *certain, rest = self._pattern.split(self._held + text)
        hold = next((n for n in range(min(self._longest, len(rest)), 0, -1) if rest[-n:] in self._starts), 0)
        self._held = rest[len(rest) - hold :]
        return "".join(certain) + rest[: len(rest) - hold]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
