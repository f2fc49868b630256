"""Builds a call's JSON arguments from keys and untyped values, strings as they come."""

from serve.tool_parsers.coerce import coerce, property_types
from serve.tool_parsers.delta_writer import DeltaWriter, escaped
from serve.tool_parsers.text_source import Reading, TextSource


class XmlArguments:
    """The arguments of one call, started by the caller.

    Args:
        source: where values are read.
        out: where the call was started.
        parameters: the tool's parameter schema, ``{}`` if unknown.
    """

    def __init__(self, source: TextSource, out: DeltaWriter, parameters: dict):
        self._source = source
        self._out = out
        self._parameters = parameters
        self._opening = "{"

    def read_value(self, key: str, *ends: str) -> Reading[bool]:
        """Writes ``key`` and the value that stands before the first of ``ends`` (taken too).

        A value that can only be a string is passed on while it comes; others wait for their end, and are passed on as
        they stand if it never comes.

        Returns:
            Whether the value's end was found.
        """
        self._out.arguments(f'{self._opening}"{escaped(key)}": ')
        self._opening = ", "
        types = property_types(self._parameters, key)
        if types == {"string"}:
            self._out.arguments('"')
            tag = yield from self._source.until(ends, lambda piece: self._out.arguments(escaped(piece)))
            self._out.arguments('"' if tag else "")
        else:
            pieces: list[str] = []
            tag = yield from self._source.until(ends, pieces.append)
            value = "".join(pieces)
            self._out.arguments(coerce(value, types) if tag else value)
        self._source.take(len(tag))
        self._source.mark()
        return tag != ""

    def end(self) -> None:
        """Closes the arguments and ends the call."""
        self._out.arguments("{}" if self._opening == "{" else "}")
        self._out.end()
