"""A conversation in a terminal: reads messages, streams answers, keeps the history. Knows no engine and no terminal."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.errors import EngineError, UserError

PROMPT = "\ndouble enter to end input >>> "
EXIT = "exit"
END = "end"


@runtime_checkable
class StreamingPipeline(Protocol):
    """What a conversation needs of ``jaxdeploy.pipeline.Pipeline``."""

    def stream_infer(self, prompts: Any, gen_config: Any = None) -> Generator[Any, None, None]:
        """Deltas of the answer, each with ``text`` and ``finish_reason``; closing the generator aborts the request."""
        ...


class ChatLoop:
    """A conversation.

    Args:
        pipeline: answers.
        read_line: shows its argument as a prompt and returns the next line without its line end; raises EOFError at the
            end of the input and KeyboardInterrupt on Ctrl-C.
        write: shows a piece of an answer at once.
        note: shows a line that is not part of an answer.
        gen_config: how answers are sampled.
        system: system prompt of each conversation; None has none.
    """

    def __init__(
        self,
        pipeline: StreamingPipeline,
        read_line: Callable[[str], str],
        write: Callable[[str], object],
        note: Callable[[str], object],
        gen_config: GenerationConfig,
        system: str | None = None,
    ):
        self._pipeline = pipeline
        self._read_line = read_line
        self._write = write
        self._note = note
        self._gen_config = gen_config
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.history: list[dict[str, str]] = list(self._opening)

    def run(self) -> None:
        """Converse until ``exit``, the end of the input, or Ctrl-C twice at the prompt.

        Ctrl-C during an answer stops that answer; what was said of it stays in the history. A message that can't be
        served (say, too long for the context) is reported and forgotten.

        Raises:
            EngineError: the engine failed.
        """
        while (message := self.read_message()) is not None:
            if message == END:
                self.history = list(self._opening)
                self._note("(new conversation)")
                continue
            try:
                self.ask(message)
            except KeyboardInterrupt:
                self._note("\n(stopped)")
            except UserError as error:
                self._note(f"error: {error}\n(the message was dropped; `{END}` starts a new conversation)")

    def ask(self, message: str) -> None:
        """Stream the answer to ``message`` and add both to the history.

        Raises:
            UserError: the message can't be served; the history is as before.
            KeyboardInterrupt: Ctrl-C; the request is aborted, the history holds what was shown of the answer, if any.
            EngineError: the engine failed.
        """
        messages = [*self.history, {"role": "user", "content": message}]
        answer = ""
        reason = None
        try:
            with closing(self._pipeline.stream_infer(messages, gen_config=self._gen_config)) as deltas:
                for delta in deltas:
                    answer += delta.text
                    reason = delta.finish_reason or reason
                    self._write(delta.text)
        finally:
            # A user turn without an answer would leave two user turns in a row, which chat templates refuse.
            if answer:
                self.history = [*messages, {"role": "assistant", "content": answer}]
        self._write("\n")
        if reason == "error":
            raise EngineError("the engine failed while it answered")
        if reason == "length":
            self._note(f"(cut off: --max-new-tokens={self._gen_config.max_new_tokens} or the end of the context)")

    def read_message(self) -> str | None:
        """The next message: lines up to an empty one or the end of the input. None: leave.

        ``end`` or ``exit`` as the first line counts at once. Ctrl-C drops the lines typed so far; twice in a row, it
        leaves.
        """
        lines: list[str] = []
        interrupted = False
        while True:
            try:
                line = self._read_line("" if lines else PROMPT)
            except EOFError:
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if interrupted:
                    return None
                interrupted, lines = True, []
                self._note(f"\n(Ctrl-C again or `{EXIT}` leaves)")
                continue
            interrupted = False
            if not lines and line.strip() in (END, EXIT):
                return END if line.strip() == END else None
            if lines and not line:
                return "\n".join(lines)
            if lines or line.strip():
                lines.append(line)
