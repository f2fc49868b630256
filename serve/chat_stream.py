"""A chat completion as a stream of chunks."""

from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import to_json  # eight times as fast as json.dumps, for every token of every stream

from jaxdeploy.engine.request import Output, TokenLogprobs
from serve.answer_reader import AnswerDelta, AnswerReader
from serve.chat_run import ChatRun
from serve.logprobs import chat_logprobs, visible
from serve.protocol.chat import ChatCompletionRequest
from serve.reasoning.think import ReasoningDelta
from serve.service import Service
from serve.sse import DONE
from serve.tool_parsers.deltas import CallArguments, CallEnd, CallStart, TextDelta


async def chat_events(
    service: Service,
    request: ChatCompletionRequest,
    run: ChatRun,
    head: dict[str, Any],
) -> AsyncIterator[bytes]:
    """The events of a streamed chat completion; all that one step gave go out together.

    Raises:
        EngineError: the engine ended an answer with an error.
    """
    chunks = ChunkWriter(head, with_usage=request.include_usage)
    choices = [ChoiceStream(service, chunks, reader, index) for index, reader in enumerate(run.readers)]
    yield b"".join(chunks.chunk(choice.index, {"role": "assistant", "content": ""}) for choice in choices)
    async for outputs in run.generation:
        piece = b"".join(choices[output.index].feed(output) for output in outputs)
        if piece:
            yield piece
        if all(reader.done for reader in run.readers):
            break
    if request.include_usage:
        yield chunks.last(run.usage())
    yield DONE


class ChunkWriter:
    """Writes ``chat.completion.chunk`` objects; what they share is encoded once.

    Args:
        head: id, created and model.
        with_usage: each chunk has a ``usage``, null but for the last.
    """

    def __init__(self, head: dict[str, Any], with_usage: bool):
        self._start = b"data: " + to_json({**head, "object": "chat.completion.chunk"})[:-1]
        self._end = b',"usage":null}\n\n' if with_usage else b"}\n\n"

    def chunk(
        self, index: int, delta: dict[str, Any], logprobs: list[Any] | None = None, finish_reason: str | None = None
    ) -> bytes:
        """A chunk with a part of one choice."""
        entries = b"null" if logprobs is None else to_json({"content": logprobs, "refusal": None})
        reason = b"null" if finish_reason is None else to_json(finish_reason)
        return b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}]%b' % (
            self._start,
            index,
            to_json(delta),
            entries,
            reason,
            self._end,
        )

    def last(self, counts: dict[str, Any]) -> bytes:
        """The chunk that has the usage and no choice."""
        return b'%b,"choices":[],"usage":%b}\n\n' % (self._start, to_json(counts))


class ChoiceStream:
    """One choice's part of the stream.

    Log-probabilities go with the next piece of the answer, whatever it is: tokens whose text is still held back have
    theirs too.
    """

    def __init__(self, service: Service, chunks: ChunkWriter, reader: AnswerReader, index: int):
        self._tokenizer = service.tokenizer
        self._chunks = chunks
        self._reader = reader
        self._pending: list[TokenLogprobs] = []
        self.index = index

    def feed(self, output: Output) -> bytes:
        """Chunks for the choice's next output."""
        if self._reader.done:
            return b""
        self._pending += output.logprobs
        pieces = [
            self._chunks.chunk(self.index, fields, self._logprobs())
            for delta in self._reader.feed(output)
            if (fields := delta_fields(delta)) is not None
        ]
        if self._reader.done:
            pieces.append(self._chunks.chunk(self.index, {}, self._logprobs(), finish_reason(self._reader)))
        return b"".join(pieces)

    def _logprobs(self) -> list[Any] | None:
        if not self._pending:
            return None
        tokens, self._pending = self._pending, []
        return chat_logprobs(self._tokenizer, visible(self._tokenizer, tokens)) or None


def delta_fields(delta: AnswerDelta) -> dict[str, Any] | None:
    """A chunk's ``delta``; None if the API has nothing to say about it."""
    match delta:
        case TextDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case CallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(index, fragment):
            return {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
        case CallEnd():
            return None


def finish_reason(reader: AnswerReader) -> str:
    """OpenAI's word for the end of an answer."""
    if reader.finish_reason == "length":
        return "length"
    return "tool_calls" if reader.calls else "stop"
