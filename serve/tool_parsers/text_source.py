"""The input side of a parser: text that arrives in pieces, read by coroutines.

Each method that may have to wait is a generator: it yields while the text so far can't decide, and is resumed when more
text has come or the end is known. What it returns depends on the text alone, never on how it was cut into pieces.
"""

import re
from collections.abc import Callable, Generator
from functools import lru_cache

from serve.tool_parsers.json_scanner import WHITE_SPACE, JsonScanner

type Reading[T] = Generator[None, None, T]

_NAME = re.compile(r"[\w.:/-]*")


@lru_cache(maxsize=64)
def _tag_pattern(tags: tuple[str, ...], ended: bool) -> re.Pattern[str]:
    """Matches any of the tags and, unless the text has ended, what may become one where the buffer ends."""
    whole = [re.escape(tag) for tag in tags]
    begun = [re.escape(tag[:n]) + r"\Z" for tag in tags for n in range(len(tag) - 1, 0, -1)]
    return re.compile("|".join(whole if ended else whole + begun) or "(?!)")


class TextSource:
    """Text read so far and not yet taken, plus what was taken since a mark.

    Attributes:
        buffer: the text not yet taken.
        ended: no more text will come.
    """

    def __init__(self):
        self.buffer = ""
        self.ended = False
        self._taken: list[str] = []

    def take(self, count: int) -> str:
        """Takes ``count`` characters of the buffer."""
        piece, self.buffer = self.buffer[:count], self.buffer[count:]
        self._taken.append(piece)
        return piece

    def mark(self) -> None:
        """Remembers this place."""
        self._taken.clear()

    def since_mark(self) -> str:
        """The text taken since the mark."""
        return "".join(self._taken)

    def rewind(self) -> None:
        """Puts back what was taken since the mark."""
        self.buffer = self.since_mark() + self.buffer
        self.mark()

    def peek(self) -> Reading[str]:
        """The next character, not taken; empty at the end."""
        while not self.buffer and not self.ended:
            yield
        return self.buffer[:1]

    def match(self, *tags: str) -> Reading[str]:
        """Takes the one of ``tags`` that comes next and returns it; empty if none does. No tag may begin another."""
        while not self.ended and any(len(self.buffer) < len(tag) and tag.startswith(self.buffer) for tag in tags):
            yield
        for tag in tags:
            if self.buffer.startswith(tag):
                return self.take(len(tag))
        return ""

    def space(self, others: str = "") -> Reading[str]:
        """Takes JSON's white space (and the characters of ``others``), as far as it goes."""
        taken = ""
        while (yield from self.peek()):
            count = len(self.buffer) - len(self.buffer.lstrip(WHITE_SPACE + others))
            if not count:
                break
            taken += self.take(count)
        return taken

    def name(self) -> Reading[str]:
        """Takes the characters that a function's name may have, as far as they go; may be empty."""
        taken = ""
        while (yield from self.peek()):
            run = _NAME.match(self.buffer)
            if run is None or not run.group():
                break
            taken += self.take(run.end())
        return taken

    def until(self, tags: tuple[str, ...], emit: Callable[[str], object]) -> Reading[str]:
        """Takes text up to the first of ``tags`` and gives it to ``emit`` as it comes.

        Only text that may be the beginning of a tag is held back. Tags must not begin one another.

        Returns:
            The tag, which is next in the buffer and not taken; empty if the text ended first.
        """
        while True:
            found = _tag_pattern(tags, self.ended).search(self.buffer)
            plain = self.take(found.start() if found else len(self.buffer))
            if plain:
                emit(plain)
            if found and found.group() in tags:
                return found.group()
            if self.ended:
                return ""
            yield

    def json_value(self, emit: Callable[[str], object]) -> Reading[bool]:
        """Takes one JSON value and gives its text to ``emit`` as it comes.

        Returns:
            Whether the value is whole; False where the text ended early or the next character (not taken) is no JSON.
        """
        scanner = JsonScanner()
        while True:
            end, clean = scanner.scan(self.buffer)
            self.take(end)
            if clean:
                emit(clean)
            if scanner.done or scanner.failed:
                return scanner.done
            if self.ended:
                return scanner.close()
            yield
