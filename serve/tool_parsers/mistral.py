"""Mistral: ``[TOOL_CALLS]`` and a JSON list of calls, or (since 2025) ``[TOOL_CALLS]NAME[ARGS]{..}`` once per call."""

from serve.tool_parsers.base import StreamParser
from serve.tool_parsers.formats import MISTRAL
from serve.tool_parsers.json_call import CallOutcome, read_json_call
from serve.tool_parsers.text_source import Reading

BEGIN, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class MistralParser(StreamParser):
    """Parser of both Mistral formats. An id that the model itself writes (``[CALL_ID]``) is dropped."""

    FORMAT = MISTRAL

    def run(self) -> Reading[None]:
        source = self.source
        while (yield from self.content(BEGIN)):
            yield from source.space()
            if (yield from source.match("[")):
                yield from self._list_of_calls()
            else:
                yield from self._named_call()

    def _list_of_calls(self) -> Reading[None]:
        source = self.source
        while True:
            yield from source.space()
            outcome = CallOutcome.NOT_A_CALL
            if (yield from source.match("{")):
                outcome = yield from read_json_call(source, self.out)
            if outcome is CallOutcome.NOT_A_CALL:
                self.give_back()
                return
            if outcome is CallOutcome.BROKEN:
                yield from self.drain_broken(BEGIN)
                return
            if (yield from self.closing(",", "]")) != ",":
                return

    def _named_call(self) -> Reading[None]:
        source, out = self.source, self.out
        name = yield from source.name()
        if name and (yield from source.match(CALL_ID)):
            yield from source.name()
        yield from source.match(ARGS)
        yield from source.space()
        if not name or (yield from source.peek()) != "{":
            self.give_back()
            return
        out.start(name)
        if (yield from source.json_value(out.arguments)):
            out.end()
            source.mark()
        else:
            yield from self.drain_broken(BEGIN)
