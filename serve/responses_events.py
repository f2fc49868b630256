"""The answer of the responses API, whole or as events, from the parts of an answer."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from serve.answer_parts import AnswerParts, Part, PartClosed, PartEvent, PartGrown, PartOpened, part_events
from serve.chat_run import ChatRun
from serve.errors import HTTPError
from serve.sse import named_event

ITEM_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
DELTAS = {
    "text": "response.output_text",
    "reasoning": "response.reasoning_text",
    "call": "response.function_call_arguments",
}


class ResponseWriter:
    """Writes one response.

    Args:
        run: makes the answer.
        head: the response object, but for what the answer adds to it.
        keep: called with the response when it is complete.
    """

    def __init__(self, run: ChatRun, head: dict[str, Any], keep: Callable[[dict[str, Any]], None]):
        self._run = run
        self._head = head
        self._keep = keep
        self._parts = AnswerParts()
        self._sent = 0

    async def whole(self) -> dict[str, Any]:
        """The response, when it is complete.

        Raises:
            EngineError: the engine ended the answer with an error.
        """
        async for _ in self._steps():
            pass
        return self._finished()

    async def events(self) -> AsyncIterator[bytes]:
        """The events of the response; all that one step gave go out together.

        Raises:
            EngineError: the engine ended the answer with an error.
        """
        begun = self._response("in_progress")
        yield self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)
        async for events in self._steps():
            yield b"".join(self._part_event(event) for event in events)
        response = self._finished()
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: HTTPError) -> bytes:
        """The last event of a stream that fails."""
        response = self._response("failed") | {"error": {"code": "server_error", "message": error.message}}
        return self._event("response.failed", response=response)

    def _steps(self) -> AsyncIterator[list[PartEvent]]:
        return part_events(self._run.generation, self._run.readers[0], self._parts)

    def _finished(self) -> dict[str, Any]:
        cut = self._run.readers[0].finish_reason == "length"
        response = self._response("incomplete" if cut else "completed")
        response |= {"usage": response_usage(self._run)}
        if cut:
            response |= {"incomplete_details": {"reason": "max_output_tokens"}}
        self._keep(response)
        return response

    def _response(self, status: str) -> dict[str, Any]:
        output = [self._item(part, "completed" if part.complete else "incomplete") for part in self._parts.parts]
        return {**self._head, "status": status, "output": output}

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._sent = self._sent, self._sent + 1
        return named_event(kind, {"type": kind, "sequence_number": number, **fields})

    def _part_event(self, event: PartEvent) -> bytes:
        match event:
            case PartOpened(part):
                return self._opened(part)
            case PartGrown(part, piece):
                more = {"logprobs": []} if part.kind == "text" else {}
                return self._event(f"{DELTAS[part.kind]}.delta", **self._place(part), delta=piece, **more)
            case PartClosed(part):
                return self._closed(part)

    def _opened(self, part: Part) -> bytes:
        item = self._item(part, "in_progress")
        added = self._event("response.output_item.added", output_index=part.index, item=item)
        if part.kind == "call":
            return added
        return added + self._event("response.content_part.added", **self._place(part), part=content(part))

    def _closed(self, part: Part) -> bytes:
        item = self._item(part, "completed" if part.complete else "incomplete")
        return self._end(part) + self._event("response.output_item.done", output_index=part.index, item=item)

    def _end(self, part: Part) -> bytes:
        place, kind = self._place(part), f"{DELTAS[part.kind]}.done"
        if part.kind == "call":
            # Arguments that were cut off are never done: a client would take them for JSON.
            return self._event(kind, **place, name=part.name, arguments=part.text) if part.complete else b""
        more = {"logprobs": []} if part.kind == "text" else {}
        ended = self._event(kind, **place, text=part.text, **more)
        return ended + self._event("response.content_part.done", **place, part=content(part))

    def _place(self, part: Part) -> dict[str, Any]:
        place = {"item_id": self._item_id(part), "output_index": part.index}
        return place if part.kind == "call" else {**place, "content_index": 0}

    def _item_id(self, part: Part) -> str:
        return f"{ITEM_PREFIXES[part.kind]}_{self._run.id.removeprefix('resp_')}{part.index:04d}"

    def _item(self, part: Part, status: str) -> dict[str, Any]:
        """An output item; while it is in progress, an empty one."""
        head = {"id": self._item_id(part), "status": status}
        begun = status == "in_progress"
        match part.kind:
            case "text":
                parts = [] if begun else [content(part)]
                return {**head, "type": "message", "role": "assistant", "content": parts}
            case "reasoning":
                return {**head, "type": "reasoning", "summary": [], "content": [] if begun else [content(part)]}
            case "call":
                arguments = "" if begun else part.text
                named = {"call_id": part.call_id, "name": part.name, "arguments": arguments}
                return {**head, "type": "function_call", **named}


def content(part: Part) -> dict[str, Any]:
    """The one content part of a message or of thinking."""
    if part.kind == "reasoning":
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}


def response_usage(run: ChatRun) -> dict[str, Any]:
    """The ``usage`` object as responses have it."""
    counts = run.usage()
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": counts["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": counts["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": counts["total_tokens"],
    }
