"""Hermes, Qwen2.5 and Qwen3: ``<tool_call>`` around one JSON object, once per call."""

from serve.tool_parsers.base import StreamParser
from serve.tool_parsers.formats import HERMES
from serve.tool_parsers.json_call import CallOutcome, read_json_call
from serve.tool_parsers.text_source import Reading

BEGIN, END = HERMES.tags


class HermesParser(StreamParser):
    """Parser of the Hermes format."""

    FORMAT = HERMES

    def run(self) -> Reading[None]:
        source = self.source
        while (yield from self.content(BEGIN)):
            yield from source.space()
            outcome = CallOutcome.NOT_A_CALL
            if (yield from source.match("{")):
                outcome = yield from read_json_call(source, self.out)
            if outcome is CallOutcome.NOT_A_CALL:
                self.give_back()
                continue
            if outcome is CallOutcome.BROKEN:
                yield from self.drain_broken(END, BEGIN)
            yield from self.closing(END)
