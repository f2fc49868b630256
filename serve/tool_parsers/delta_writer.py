"""Collects deltas while a parser runs: numbers the calls, gives them ids, joins neighbouring pieces."""

import json
import secrets
from collections.abc import Callable

from serve.tool_parsers.deltas import CallArguments, CallEnd, CallStart, Delta, TextDelta, joined


def random_call_id() -> str:
    """A fresh id for a call: ``call_`` and 24 hex digits."""
    return f"call_{secrets.token_hex(12)}"


def escaped(text: str) -> str:
    """``text`` as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class DeltaWriter:
    """The output side of a parser.

    Attributes:
        calls: number of calls started.
        in_text: whether the last thing written was text.
    """

    def __init__(self, new_id: Callable[[], str]):
        self._new_id = new_id
        self._deltas: list[Delta] = []
        self._call_is_empty = True
        self.calls = 0
        self.in_text = False

    def text(self, text: str) -> None:
        """Writes text of the answer; an empty string is nothing."""
        if text:
            self._add(TextDelta(text))
            self.in_text = True

    def start(self, name: str) -> None:
        """Starts the next call."""
        self._add(CallStart(self.calls, self._new_id(), name))
        self.calls += 1
        self.in_text = False
        self._call_is_empty = True

    def arguments(self, fragment: str) -> None:
        """Writes a piece of the arguments of the call started last."""
        if fragment:
            self._add(CallArguments(self.calls - 1, fragment))
            self.in_text = False
            self._call_is_empty = False

    def end(self) -> None:
        """Ends the call started last; a call without arguments gets ``{}``."""
        if self._call_is_empty:
            self.arguments("{}")
        self._add(CallEnd(self.calls - 1))

    def call(self, name: str, arguments: str) -> None:
        """Writes a whole call."""
        self.start(name)
        self.arguments(arguments)
        self.end()

    def drain(self) -> list[Delta]:
        """What was written since the last drain."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def _add(self, delta: Delta) -> None:
        both = joined(self._deltas[-1], delta) if self._deltas else None
        if both is None:
            self._deltas.append(delta)
        else:
            self._deltas[-1] = both
