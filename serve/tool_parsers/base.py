"""What every tool parser is, and the text part that all of them share."""

from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol

from serve.tool_parsers.delta_writer import DeltaWriter, random_call_id
from serve.tool_parsers.deltas import Delta
from serve.tool_parsers.formats import ToolFormat
from serve.tool_parsers.text_source import Reading, TextSource
from serve.tool_schema import tool_parameters


class ToolParser(Protocol):
    """Reads one choice's text as it is generated. The deltas, merged, depend on the whole text alone."""

    def feed(self, text: str) -> list[Delta]:
        """Takes the next piece of the model's text; returns what it decided."""
        ...

    def finish(self) -> list[Delta]:
        """Says that the text is over; returns what was held back. Nothing may be fed afterwards."""
        ...


class StreamParser:
    """A tool parser written as a coroutine over ``source`` that writes to ``out``; subclasses give ``run``.

    Rules that hold for all of them:

    - White space between calls, before the first call when nothing else is, and after the last one is no text.
    - What begins like a call and turns out not to be one comes back as text, its tags included.
    - Once a call has been started (name and first sign of arguments read) it can't be taken back: if its text then
      breaks or is cut off, the arguments are left as they stand and no ``CallEnd`` follows.

    Args:
        tools: the request's tools as OpenAI sends them; their schemas say how untyped values are read.
        new_id: makes the ids of the calls.
    """

    FORMAT: ClassVar[ToolFormat]

    def __init__(self, tools: Iterable[dict] = (), new_id: Callable[[], str] = random_call_id):
        self.schemas = tool_parameters(tools)
        self.source = TextSource()
        self.out = DeltaWriter(new_id)
        self._running = self.run()

    def run(self) -> Reading[None]:
        """Reads ``self.source`` to its end, writing to ``self.out``."""
        raise NotImplementedError

    def feed(self, text: str) -> list[Delta]:
        """See ``ToolParser.feed``."""
        if self.source.ended:
            raise RuntimeError(f"feed({text!r}) after finish(); make a new parser for each choice")
        self.source.buffer += text
        next(self._running)
        return self.out.drain()

    def finish(self) -> list[Delta]:
        """See ``ToolParser.finish``. A second call returns nothing."""
        if not self.source.ended:
            self.source.ended = True
            next(self._running, None)
            self.out.text(self.source.take(len(self.source.buffer)))
        return self.out.drain()

    def content(self, *triggers: str, at_start: tuple[str, ...] = (), separators: str = "") -> Reading[str]:
        """Passes text through until a call begins.

        Args:
            triggers: the tags that begin a call anywhere.
            at_start: what begins a call only where no text stands before it: at the very start or after another call.
            separators: characters that part calls like white space does.

        Returns:
            What begins the call (taken, and the mark is before it); empty at the end of the text.
        """
        source, out = self.source, self.out
        source.mark()
        if not out.in_text:
            space = yield from source.space(separators)
            if tag := (yield from source.match(*triggers, *at_start)):
                return tag
            if space and (source.buffer or not out.calls):
                out.text(space)
        tag = yield from source.until(triggers, self._pass_text)
        source.mark()
        return source.take(len(tag))

    def _pass_text(self, piece: str) -> None:
        self.out.text(piece)
        self.source.mark()  # nobody asks for it again: don't keep a long answer

    def give_back(self) -> None:
        """Writes the text since the mark as text: it was no call."""
        self.out.text(self.source.since_mark())
        self.source.mark()

    def closing(self, *tags: str) -> Reading[str]:
        """Takes white space and one of ``tags``; takes nothing and returns an empty string if neither tag comes."""
        self.source.mark()
        yield from self.source.space()
        tag = yield from self.source.match(*tags)
        if not tag:
            self.source.rewind()
        self.source.mark()
        return tag

    def drain_broken(self, *closers: str) -> Reading[str]:
        """Passes the rest of a call whose JSON broke as arguments, up to one of ``closers`` (returned, not taken)."""
        tag = yield from self.source.until(closers, self.out.arguments)
        self.source.mark()
        return tag
