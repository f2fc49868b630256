"""The answer of Anthropic's API, whole or as events, from the parts of an answer."""

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import from_json

from serve.answer_parts import AnswerParts, Part, PartClosed, PartEvent, PartGrown, PartOpened, part_events
from serve.answer_reader import AnswerReader
from serve.chat_run import ChatRun
from serve.matched_stop import MatchedStop
from serve.sse import named_event

DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageWriter:
    """Writes one message.

    Args:
        run: makes the answer.
        model: its name.
        stop: finds the stop sequence that ended the answer; None if there are none.
    """

    def __init__(self, run: ChatRun, model: str, stop: MatchedStop | None):
        self._run = run
        self._model = model
        self._stop = stop
        self._parts = AnswerParts()

    @property
    def _reader(self) -> AnswerReader:
        return self._run.readers[0]

    async def whole(self) -> dict[str, Any]:
        """The message, when it is complete.

        Raises:
            EngineError: the engine ended the answer with an error.
        """
        async for _ in self._steps():
            pass
        reason, sequence = self._reason()
        return self._message([whole_block(part) for part in self._parts.parts], reason, sequence)

    async def events(self) -> AsyncIterator[bytes]:
        """The events of the message; all that one step gave go out together.

        Raises:
            EngineError: the engine ended the answer with an error.
        """
        start = {"type": "message_start", "message": self._message([], None, None)}
        yield named_event("message_start", start) + named_event("ping", {"type": "ping"})
        async for events in self._steps():
            yield b"".join(block_event(event) for event in events)
        reason, sequence = self._reason()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        end = {"type": "message_delta", "delta": delta, "usage": message_usage(self._run)}
        yield named_event("message_delta", end) + named_event("message_stop", {"type": "message_stop"})

    def _steps(self) -> AsyncIterator[list[PartEvent]]:
        before = None if self._stop is None else self._stop.strip
        return part_events(self._run.generation, self._reader, self._parts, before)

    def _reason(self) -> tuple[str, str | None]:
        """Anthropic's word for the end of the answer, and the stop sequence that was met."""
        if self._reader.finish_reason == "length":
            return "max_tokens", None
        if self._stop is not None and self._stop.found is not None:
            return "stop_sequence", self._stop.found
        return ("tool_use" if self._reader.calls else "end_turn"), None

    def _message(self, content: list[Any], reason: str | None, sequence: str | None) -> dict[str, Any]:
        return {
            "id": self._run.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": message_usage(self._run),
        }


def block_event(event: PartEvent) -> bytes:
    """The event of a content block."""
    index = event.part.index
    match event:
        case PartOpened(part):
            return named_event(
                "content_block_start", {"type": "content_block_start", "index": index, "content_block": block(part)}
            )
        case PartGrown(part, piece):
            kind, field = DELTAS[part.kind]
            delta = {"type": "content_block_delta", "index": index, "delta": {"type": kind, field: piece}}
            return named_event("content_block_delta", delta)
        case PartClosed():
            return named_event("content_block_stop", {"type": "content_block_stop", "index": index})


def block(part: Part, text: str = "", arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """A content block, empty unless told otherwise."""
    match part.kind:
        case "text":
            return {"type": "text", "text": text}
        case "reasoning":
            return {"type": "thinking", "thinking": text, "signature": ""}
        case "call":
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": arguments or {}}


def whole_block(part: Part) -> dict[str, Any]:
    """A content block with all that the part holds."""
    return block(part, part.text, call_input(part) if part.kind == "call" else None)


def call_input(part: Part) -> dict[str, Any]:
    """The arguments of a call. Of one that was cut off, what is there; what is no JSON object stands under ``arguments``."""
    try:
        found = json.loads(part.text) if part.complete else from_json(part.text, allow_partial=True)
    except ValueError:
        found = part.text
    if isinstance(found, dict):
        return found
    return {"arguments": found} if found else {}


def message_usage(run: ChatRun) -> dict[str, Any]:
    """Anthropic's ``usage`` object; its input tokens are those that no cache held."""
    counts = run.usage()
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    thinking = counts["completion_tokens_details"]["reasoning_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"thinking_tokens": thinking},
    }
