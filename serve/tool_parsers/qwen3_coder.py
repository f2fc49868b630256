"""Qwen3-Coder: ``<function=NAME>`` and one ``<parameter=KEY>`` block per argument, values without types."""

from serve.tool_parsers.base import StreamParser
from serve.tool_parsers.formats import QWEN3_CODER
from serve.tool_parsers.text_source import Reading
from serve.tool_parsers.xml_arguments import XmlArguments

BEGIN, END = QWEN3_CODER.tags
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


class Qwen3CoderParser(StreamParser):
    """Parser of the Qwen3-Coder format; the model often forgets ``<tool_call>``, so ``<function=`` begins a call too.

    One newline after a parameter's opening tag and one before its closing tag belong to the format, not to the value.
    """

    FORMAT = QWEN3_CODER

    def run(self) -> Reading[None]:
        source = self.source
        while tag := (yield from self.content(*self.FORMAT.triggers)):
            if tag == BEGIN:
                yield from source.space()
                tag = yield from source.match(FUNCTION)
            name = (yield from source.name()) if tag else ""
            opened = (yield from source.match(">")) if name else ""
            yield from source.space()
            tag = (yield from source.match(PARAMETER, FUNCTION_END, END)) if opened else ""
            if tag:
                yield from self._call(name, tag)
            else:
                self.give_back()

    def _call(self, name: str, tag: str) -> Reading[None]:
        source = self.source
        self.out.start(name)
        arguments = XmlArguments(source, self.out, self.schemas.get(name, {}))
        while tag == PARAMETER:
            source.mark()
            key: list[str] = []
            if not (yield from source.until((">",), key.append)):
                self.out.text(tag + source.since_mark())
                return
            source.take(1)
            yield from source.match("\n")
            if not (yield from arguments.read_value("".join(key), "\n" + PARAMETER_END, PARAMETER_END)):
                return
            tag = yield from self.closing(PARAMETER, FUNCTION_END, END)
        if tag:
            arguments.end()
        if tag == FUNCTION_END:
            yield from self.closing(END)
