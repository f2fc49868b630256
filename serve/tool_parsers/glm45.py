"""GLM-4.5 and later: ``<tool_call>NAME`` and pairs of ``<arg_key>`` and ``<arg_value>``, values without types."""

from serve.tool_parsers.base import StreamParser
from serve.tool_parsers.formats import GLM45
from serve.tool_parsers.text_source import Reading
from serve.tool_parsers.xml_arguments import XmlArguments

BEGIN, END, KEY, KEY_END, VALUE, VALUE_END = GLM45.tags


class Glm45Parser(StreamParser):
    """Parser of the GLM-4.5 format. White space inside ``<arg_value>`` belongs to the value."""

    FORMAT = GLM45

    def run(self) -> Reading[None]:
        source = self.source
        while (yield from self.content(BEGIN)):
            yield from source.space()
            name = yield from source.name()
            yield from source.space()
            tag = (yield from source.match(KEY, END)) if name else ""
            if tag:
                yield from self._call(name, tag)
            else:
                self.give_back()

    def _call(self, name: str, tag: str) -> Reading[None]:
        source = self.source
        self.out.start(name)
        arguments = XmlArguments(source, self.out, self.schemas.get(name, {}))
        while tag == KEY:
            source.mark()
            key: list[str] = []
            source.take(len((yield from source.until((KEY_END,), key.append))))
            yield from source.space()
            if not (yield from source.match(VALUE)):
                self.out.text(tag + source.since_mark())
                return
            if not (yield from arguments.read_value("".join(key).strip(), VALUE_END)):
                return
            tag = yield from self.closing(KEY, END)
        if tag:
            arguments.end()
