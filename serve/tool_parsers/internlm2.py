"""InternLM2, 2.5 and 3: ``<|action_start|><|plugin|>`` and JSON, or ``<|interpreter|>`` and Python code."""

from serve.tool_parsers.base import StreamParser
from serve.tool_parsers.delta_writer import escaped
from serve.tool_parsers.formats import INTERNLM2
from serve.tool_parsers.json_call import CallOutcome, read_json_call
from serve.tool_parsers.text_source import Reading

PLUGIN, INTERPRETER, END = "<|plugin|>", "<|interpreter|>", "<|action_end|>"
FENCE = "```"
INTERPRETER_NAMES = ("interpreter", "code_interpreter", "python", "ipython", "IPythonInterpreter")


class InternLM2Parser(StreamParser):
    """Parser of the InternLM2 format.

    Code for the interpreter becomes a call too. Its name is that of the request's tool that looks like an interpreter
    (``INTERPRETER_NAMES``), else ``interpreter``, the name of the turn that answers it. Its only argument is ``code``,
    or whatever that tool's only property is called.

    ``<|action_end|>`` may be missing: engines stop on it and may not show it.
    """

    FORMAT = INTERNLM2

    def run(self) -> Reading[None]:
        source = self.source
        while (yield from self.content(*self.FORMAT.triggers)):
            yield from source.space()
            kind = yield from source.match(PLUGIN, INTERPRETER)
            yield from source.space()
            if kind == INTERPRETER and (yield from source.peek()):
                yield from self._code_call()
            elif kind == PLUGIN and (yield from source.match("{")):
                yield from self._plugin_call()
            else:
                self.give_back()

    def _plugin_call(self) -> Reading[None]:
        outcome = yield from read_json_call(self.source, self.out)
        if outcome is CallOutcome.NOT_A_CALL:
            self.give_back()
            return
        if outcome is CallOutcome.BROKEN:
            yield from self.drain_broken(END, *self.FORMAT.triggers)
        yield from self.closing(END)

    def _code_call(self) -> Reading[None]:
        source, out = self.source, self.out
        name = next((each for each in INTERPRETER_NAMES if each in self.schemas), "interpreter")
        properties = list(self.schemas.get(name, {}).get("properties", {}))
        key = properties[0] if len(properties) == 1 else "code"
        fenced = yield from source.match(FENCE)
        out.start(name)
        out.arguments(f'{{"{escaped(key)}": "')
        if fenced:
            yield from source.name()  # the language
        first = True

        def emit(code: str) -> None:
            nonlocal first
            out.arguments(escaped(code.removeprefix("\n") if first else code))
            first = False

        ends = ("\n" + FENCE, END) if fenced else (END,)
        while tag := (yield from source.until(ends, emit)):
            source.mark()
            source.take(len(tag))
            if tag == END:
                break
            yield from source.space()
            if (yield from source.match(END)) or (source.ended and not source.buffer):
                break
            source.rewind()  # a fence inside the code
            emit(source.take(len(tag)))
        if tag or not fenced:
            out.arguments('"}')
            out.end()
        source.mark()
