"""``<think>..</think>``: the thinking of a reasoning model, parted from its answer as both are generated."""

from dataclasses import dataclass

from serve.tool_parsers.deltas import TextDelta
from serve.tool_parsers.text_source import Reading, TextSource

BEGIN, END = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the thinking."""

    text: str


def prompt_opens_thinking(prompt: str) -> bool:
    """Whether the prompt's text ends inside a think block, as some chat templates leave it."""
    return prompt.rfind(BEGIN) > prompt.rfind(END)


def thinks(chat_template: str | None) -> bool:
    """Whether a chat template is that of a model that thinks in ``<think>`` blocks."""
    return END in (chat_template or "")


class ReasoningParser:
    """Parts one choice's text; what it yields as ``TextDelta`` goes on to the tool parser.

    A think block counts only at the very start of the answer (white space before it is dropped), later tags are text.
    Newlines around the thinking (after ``<think>``, before ``</think>``, after ``</think>``) belong to neither part.
    A block that is never closed is all thinking. The deltas, joined, depend on the whole text alone.

    Args:
        starts_inside: the prompt already opened the block; a ``<think>`` that the model writes again is dropped.

    Attributes:
        inside: whether the text fed so far ends in the thinking.
        decided: whether it is known that there is a think block, or none. A constraint on the answer may start
            as soon as this is true and ``inside`` is false.
    """

    def __init__(self, starts_inside: bool = False):
        self.inside = starts_inside
        self.decided = starts_inside
        self._source = TextSource()
        self._deltas: list[ReasoningDelta | TextDelta] = []
        self._newlines = ""
        self._running = self._run()

    def feed(self, text: str) -> list[ReasoningDelta | TextDelta]:
        """Takes the next piece of the model's text; returns what it decided."""
        if self._source.ended:
            raise RuntimeError(f"feed({text!r}) after finish(); make a new parser for each choice")
        self._source.buffer += text
        next(self._running)
        return self._drain()

    def finish(self) -> list[ReasoningDelta | TextDelta]:
        """Says that the text is over; returns what was held back."""
        if not self._source.ended:
            self._source.ended = True
            next(self._running, None)
        return self._drain()

    def _run(self) -> Reading[None]:
        source = self._source
        space = yield from source.space()
        if (yield from source.match(BEGIN)):
            self.inside, space = True, ""
        self.decided = True
        if not self.inside:
            self._text(space)
        else:
            self._reasoning(space.lstrip("\n"))
            yield from self._skip_newlines()
            if not (yield from source.until((END,), self._reasoning)):
                self._add(ReasoningDelta(self._newlines))
                return
            source.take(len(END))
            self.inside = False
            yield from self._skip_newlines()
        yield from source.until((), self._text)

    def _skip_newlines(self) -> Reading[None]:
        while (yield from self._source.match("\n")):
            pass

    def _reasoning(self, piece: str) -> None:
        """Passes thinking on, newlines at its end only once more comes."""
        piece = self._newlines + piece
        kept = piece.rstrip("\n")
        self._newlines = piece[len(kept) :]
        self._add(ReasoningDelta(kept))

    def _text(self, piece: str) -> None:
        self._add(TextDelta(piece))

    def _add(self, delta: ReasoningDelta | TextDelta) -> None:
        self._source.mark()  # nothing is read twice here: don't keep the text
        if delta.text:
            self._deltas.append(delta)

    def _drain(self) -> list[ReasoningDelta | TextDelta]:
        deltas, self._deltas = self._deltas, []
        return deltas
