"""One answer, read as it is generated: thinking, text and tool calls, the same for every API."""

from jaxdeploy.engine.request import FinishReason, Output
from serve.reasoning.think import ReasoningDelta, ReasoningParser
from serve.special_tokens import SpecialTokenFilter
from serve.tool_parsers.base import ToolParser
from serve.tool_parsers.deltas import CallEnd, CallStart, Delta, TextDelta

type AnswerDelta = ReasoningDelta | Delta


class AnswerReader:
    """Turns the outputs of one answer into deltas.

    Args:
        special_tokens: drops the texts of special tokens; None leaves the text as it is.
        reasoning: parts thinking from the answer; None if the model doesn't think.
        tools: finds calls; None if the request has no tools.
        one_call: at most one call is wanted; what follows it is dropped.

    Attributes:
        finish_reason: as the engine says, once the answer has ended.
        calls: tool calls begun.
        tokens: of the answer so far.
        cached_tokens: of the prompt, found in the engine's prefix cache.
        reasoning_tokens: tokens of them that belong to the thinking, its tags included.
    """

    def __init__(
        self,
        special_tokens: SpecialTokenFilter | None = None,
        reasoning: ReasoningParser | None = None,
        tools: ToolParser | None = None,
        one_call: bool = False,
    ):
        self._special_tokens = special_tokens
        self._reasoning = reasoning
        self._tools = tools
        self._one_call = one_call
        self.finish_reason: FinishReason | None = None
        self.calls = 0
        self.tokens = 0
        self.cached_tokens = 0
        self.reasoning_tokens = 0

    @property
    def done(self) -> bool:
        """True when nothing more will come."""
        return self.finish_reason is not None

    def feed(self, output: Output) -> list[AnswerDelta]:
        """Takes the answer's next output. After the end, nothing comes any more."""
        if self.done:
            return []
        self.tokens += len(output.token_ids)
        self.cached_tokens = output.cached_tokens
        deltas = self._read(output.text, len(output.token_ids))
        if self._one_call and any(isinstance(delta, CallEnd) for delta in deltas):
            self.finish_reason = "stop"
            end = next(i for i, delta in enumerate(deltas) if isinstance(delta, CallEnd))
            return deltas[: end + 1]
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            deltas += self._rest()
        return deltas

    def _read(self, text: str, tokens: int) -> list[AnswerDelta]:
        if self._special_tokens is not None:
            text = self._special_tokens.feed(text)
        if self._reasoning is None:
            return self._answer(text)
        was_inside = self._reasoning.inside
        parts = self._reasoning.feed(text)
        if was_inside or self._reasoning.inside:
            self.reasoning_tokens += tokens
        return self._parted(parts)

    def _parted(self, parts: list[ReasoningDelta | TextDelta]) -> list[AnswerDelta]:
        deltas: list[AnswerDelta] = []
        for part in parts:
            deltas += self._answer(part.text) if isinstance(part, TextDelta) else [part]
        return deltas

    def _answer(self, text: str) -> list[AnswerDelta]:
        if not text:
            return []
        if self._tools is None:
            return [TextDelta(text)]
        return self._counted(self._tools.feed(text))

    def _rest(self) -> list[AnswerDelta]:
        held = self._special_tokens.flush() if self._special_tokens is not None else ""
        deltas = self._read_rest(held)
        return deltas + self._counted(self._tools.finish()) if self._tools is not None else deltas

    def _read_rest(self, held: str) -> list[AnswerDelta]:
        if self._reasoning is None:
            return self._answer(held)
        return self._parted(self._reasoning.feed(held)) + self._parted(self._reasoning.finish())

    def _counted(self, deltas: list[Delta]) -> list[AnswerDelta]:
        self.calls += sum(isinstance(delta, CallStart) for delta in deltas)
        return list(deltas)
