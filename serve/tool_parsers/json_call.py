"""Reads a call written as one JSON object: ``{"name": .., "arguments": {..}}``, the arguments as they come."""

import json
from enum import Enum, auto

from serve.tool_parsers.delta_writer import DeltaWriter
from serve.tool_parsers.json_scanner import clean_json
from serve.tool_parsers.text_source import Reading, TextSource

ARGUMENT_KEYS = ("arguments", "parameters")


class CallOutcome(Enum):
    """How reading a call went."""

    CALLED = auto()  # the call is written and ended
    BROKEN = auto()  # the call was started, then its arguments stopped being JSON or the text ended
    NOT_A_CALL = auto()  # nothing was written


def arguments_of(value: str) -> str | None:
    """The arguments' JSON object from the value that stands for them, None if it is none.

    ``null`` is the empty object; a string holds the object's JSON text (double-encoded) and is decoded once.
    """
    if value.startswith('"'):
        value = json.loads(value).strip()
    if value in ("null", ""):
        return "{}"
    value = clean_json(value) or ""
    return value if value.startswith("{") else None


class _JsonCallReader:
    """State while one object is read."""

    def __init__(self, source: TextSource, out: DeltaWriter):
        self.source = source
        self.out = out
        self.name: str | None = None
        self.held: str | None = None  # arguments that came before the name, or as a string
        self.started = False

    def whole_value(self) -> Reading[str | None]:
        """The next JSON value's text, None if there is none."""
        pieces: list[str] = []
        whole = yield from self.source.json_value(pieces.append)
        return "".join(pieces) if whole else None

    def punctuation(self, *tags: str) -> Reading[str]:
        """White space, then one of ``tags``."""
        yield from self.source.space()
        return (yield from self.source.match(*tags))

    def read_name(self) -> Reading[bool]:
        value = yield from self.whole_value()
        if value is None or not value.startswith('"') or value == '""':
            return False
        self.name = json.loads(value)
        return True

    def read_arguments(self) -> Reading[CallOutcome]:
        """Streams the arguments if the name is known; else holds them."""
        if (yield from self.source.peek()) == "{" and self.name is not None:
            self.out.start(self.name)
            self.started = True
            if not (yield from self.source.json_value(self.out.arguments)):
                return CallOutcome.BROKEN
            self.out.end()
            self.source.mark()
            return CallOutcome.CALLED
        value = yield from self.whole_value()
        self.held = None if value is None else arguments_of(value)
        return CallOutcome.NOT_A_CALL if self.held is None else CallOutcome.CALLED

    def read_member(self) -> Reading[CallOutcome]:
        """One ``"key": value``; NOT_A_CALL also where it is no JSON."""
        yield from self.source.space()
        if (yield from self.source.peek()) != '"':
            return CallOutcome.NOT_A_CALL
        key = yield from self.whole_value()
        if key is None or not (yield from self.punctuation(":")):
            return CallOutcome.NOT_A_CALL
        yield from self.source.space()
        key = json.loads(key)
        if key in ARGUMENT_KEYS and not self.started and self.held is None:
            outcome = yield from self.read_arguments()
        elif key == "name" and self.name is None:
            outcome = CallOutcome.CALLED if (yield from self.read_name()) else CallOutcome.NOT_A_CALL
        else:
            known = yield from self.whole_value()
            outcome = CallOutcome.NOT_A_CALL if known is None else CallOutcome.CALLED
        if self.name is not None and self.held is not None and not self.started:
            self.out.call(self.name, self.held)
            self.started = True
            self.source.mark()
        return outcome

    def read_members(self) -> Reading[CallOutcome]:
        """All members and the closing brace; the opening one is taken."""
        if (yield from self.punctuation("}")):
            return CallOutcome.CALLED
        while True:
            outcome = yield from self.read_member()
            if outcome is not CallOutcome.CALLED:
                return outcome
            closer = yield from self.punctuation(",", "}")
            if closer == "}":
                return CallOutcome.CALLED
            if not closer:
                return CallOutcome.NOT_A_CALL


def read_json_call(source: TextSource, out: DeltaWriter, *, arguments_required: bool = False) -> Reading[CallOutcome]:
    """Reads a call object whose ``{`` is already taken, and writes the call.

    The name may stand before or after the arguments; these may be called ``arguments`` or ``parameters``. Other members
    are dropped. If the object breaks or is cut off after complete arguments, the call stands and what is left of the
    object (since the mark) is text.

    Args:
        source: what to read; on return the mark is behind the call unless NOT_A_CALL is returned.
        out: where the call is written.
        arguments_required: an object with a name and no arguments is no call; otherwise it is one without arguments.
    """
    reader = _JsonCallReader(source, out)
    outcome = yield from reader.read_members()
    if reader.started:
        if outcome is CallOutcome.NOT_A_CALL:
            if source.since_mark().strip():
                out.text(source.since_mark())
            outcome = CallOutcome.CALLED
    elif outcome is CallOutcome.CALLED:
        if reader.name is None or arguments_required:
            return CallOutcome.NOT_A_CALL
        out.call(reader.name, "{}")
    if outcome is not CallOutcome.NOT_A_CALL:
        source.mark()
    return outcome
