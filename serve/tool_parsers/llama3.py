"""Llama 3.1 and later: bare JSON as the whole answer, or JSON after ``<|python_tag|>``; nothing closes a call."""

from serve.tool_parsers.base import StreamParser
from serve.tool_parsers.formats import LLAMA3
from serve.tool_parsers.json_call import CallOutcome, read_json_call
from serve.tool_parsers.text_source import Reading

TAG = "<|python_tag|>"


class Llama3Parser(StreamParser):
    """Parser of the Llama 3 format.

    Bare JSON is looked at only where the answer begins with it, or another call (and ``;``) stands before it; it is a
    call if it has a name and arguments. Python code after the tag is text.
    """

    FORMAT = LLAMA3

    def run(self) -> Reading[None]:
        source = self.source
        while opening := (yield from self.content(TAG, at_start=("{",), separators=";")):
            tagged = opening == TAG
            if tagged:
                yield from source.space()
                opening = yield from source.match("{")
            outcome = CallOutcome.NOT_A_CALL
            if opening:
                outcome = yield from read_json_call(source, self.out, arguments_required=not tagged)
            if outcome is CallOutcome.NOT_A_CALL:
                self.give_back()
            elif outcome is CallOutcome.BROKEN:
                yield from self.drain_broken(TAG)
