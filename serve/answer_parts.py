"""An answer as a row of parts (thinking, text, calls), for APIs that stream one part after the other."""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from jaxdeploy.engine.request import Output
from serve.answer_reader import AnswerDelta, AnswerReader
from serve.engine_client import Generation
from serve.reasoning.think import ReasoningDelta
from serve.tool_parsers.deltas import CallArguments, CallEnd, CallStart, TextDelta

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Part:
    """One part of an answer.

    Attributes:
        index: its place in the answer.
        pieces: of its text; a call's text is the JSON of its arguments.
        call_id, name: of a call.
        complete: it ended by itself. A call whose arguments are broken or cut off never is.
    """

    index: int
    kind: Kind
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class PartOpened:
    """A part begins."""

    part: Part


@dataclass(frozen=True, slots=True)
class PartGrown:
    """A part goes on."""

    part: Part
    piece: str


@dataclass(frozen=True, slots=True)
class PartClosed:
    """A part is over; the next one begins after it."""

    part: Part


type PartEvent = PartOpened | PartGrown | PartClosed


class AnswerParts:
    """Groups deltas. One part is open at a time; white space that would be a text part by itself is left out.

    Attributes:
        parts: all so far.
    """

    def __init__(self):
        self.parts: list[Part] = []
        self._open: Part | None = None
        self._space = ""

    def feed(self, deltas: Iterable[AnswerDelta]) -> list[PartEvent]:
        """Take the next deltas."""
        events: list[PartEvent] = []
        for delta in deltas:
            match delta:
                case ReasoningDelta(text):
                    self._grow("reasoning", text, events)
                case TextDelta(text):
                    self._text(text, events)
                case CallStart(_, call_id, name):
                    self._begin(Part(len(self.parts), "call", call_id, name), events)
                case CallArguments(_, fragment):
                    self._grow("call", fragment, events)
                case CallEnd():
                    self._end(True, events)
        return events

    def finish(self, cut: bool) -> list[PartEvent]:
        """The answer is over; ``cut`` if it did not end by itself."""
        events: list[PartEvent] = []
        self._end(not cut and self._open is not None and self._open.kind != "call", events)
        return events

    def _text(self, text: str, events: list[PartEvent]) -> None:
        if self._open is None or self._open.kind != "text":
            text, self._space = self._space + text, ""
            if not text.strip():
                self._space = text
                return
        self._grow("text", text, events)

    def _grow(self, kind: Kind, text: str, events: list[PartEvent]) -> None:
        if self._open is None or self._open.kind != kind:
            self._begin(Part(len(self.parts), kind), events)
        assert self._open is not None
        self._open.pieces.append(text)
        events.append(PartGrown(self._open, text))

    def _begin(self, part: Part, events: list[PartEvent]) -> None:
        self._end(self._open is not None and self._open.kind != "call", events)
        self._space = ""
        self.parts.append(part)
        self._open = part
        events.append(PartOpened(part))

    def _end(self, complete: bool, events: list[PartEvent]) -> None:
        if self._open is not None:
            self._open.complete = complete
            events.append(PartClosed(self._open))
            self._open = None


async def part_events(
    generation: Generation,
    reader: AnswerReader,
    parts: AnswerParts,
    before: Callable[[Output], Output] | None = None,
) -> AsyncIterator[list[PartEvent]]:
    """What each step adds to an answer, until it ends.

    Args:
        generation: of one answer.
        reader: reads it.
        parts: groups what it reads.
        before: changes each output before it is read.

    Raises:
        EngineError: the engine ended the answer with an error.
    """
    async for outputs in generation:
        events: list[PartEvent] = []
        for output in outputs:
            events += parts.feed(reader.feed(output if before is None else before(output)))
        if reader.done:
            events += parts.finish(cut=reader.finish_reason == "length")
        if events:
            yield events
        if reader.done:
            return
