"""DeepSeek V3 and R1: the type, a name and fenced JSON between special tokens; V3.1: the name and plain JSON."""

from serve.tool_parsers.base import StreamParser
from serve.tool_parsers.formats import DEEPSEEK_V3
from serve.tool_parsers.text_source import Reading

CALLS_BEGIN, CALL_BEGIN, SEPARATOR, CALL_END, CALLS_END = DEEPSEEK_V3.tags
FENCE = "```"


class DeepSeekParser(StreamParser):
    """Parser of both DeepSeek formats; the tag around all calls may be missing."""

    FORMAT = DEEPSEEK_V3

    def run(self) -> Reading[None]:
        source = self.source
        while tag := (yield from self.content(*self.FORMAT.triggers)):
            if tag == CALLS_BEGIN:
                yield from source.space()
                tag = yield from source.match(CALL_BEGIN)
            if not tag:
                self.give_back()
                continue
            yield from self._call()

    def _call(self) -> Reading[None]:
        source, out = self.source, self.out
        name = yield from source.name()  # in V3 this is the call's type, "function"
        separated = yield from source.match(SEPARATOR)
        yield from source.space()
        fence = ""
        if separated and (yield from source.peek()) != "{":
            name = yield from source.name()
            yield from source.space()
            fence = yield from source.match(FENCE)
            if fence:
                yield from source.name()  # the language
            yield from source.space()
        if not separated or not name or (yield from source.peek()) != "{":
            self.give_back()
            return
        out.start(name)
        if (yield from source.json_value(out.arguments)):
            out.end()
            if fence:
                yield from self.closing(FENCE)
        else:
            yield from self.drain_broken("\n" + FENCE + CALL_END, CALL_END, *self.FORMAT.triggers)
            if fence:
                yield from self.closing(FENCE)
        yield from self.closing(CALL_END)
        yield from self.closing(CALLS_END)
