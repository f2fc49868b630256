"""One choice of a text completion."""

from typing import Any

from jaxdeploy.engine.request import Output, TokenLogprobs
from jaxdeploy.text.tokenizer import Tokenizer
from serve.logprobs import CompletionLogprobs, joined_blocks, visible
from serve.protocol.completion import CompletionRequest


class CompletionChoice:
    """Turns the outputs of one answer into parts of a choice.

    Args:
        tokenizer: names tokens.
        request: says whether the prompt is repeated and log-probabilities are given.
        index: of the choice.
        prompt, prompt_ids: what it goes on with.

    Attributes:
        tokens: generated so far.
        cached_tokens: of the prompt, found in the engine's prefix cache.
    """

    def __init__(
        self, tokenizer: Tokenizer, request: CompletionRequest, index: int, prompt: str, prompt_ids: list[int]
    ):
        self.index = index
        self.tokens = 0
        self.cached_tokens = 0
        self._tokenizer = tokenizer
        self._echo = bool(request.echo)
        self._prompt, self._prompt_ids = prompt, prompt_ids
        self._ends_at_once = request.new_tokens == 0
        skip_special = request.skip_special_tokens is not False
        self._logprobs = (
            None
            if request.logprobs is None
            else CompletionLogprobs(tokenizer, () if self._echo else prompt_ids, skip_special)
        )

    def opening(self, scores: list[TokenLogprobs]) -> dict[str, Any] | None:
        """The part with the repeated prompt; None where it is not asked for.

        Args:
            scores: of the prompt's tokens from the second on.
        """
        if not self._echo:
            return None
        block = None if self._logprobs is None else self._logprobs.block(scores, first=self._prompt_ids[0])
        return self._part(self._prompt, block, "length" if self._ends_at_once else None)

    def feed(self, output: Output) -> dict[str, Any]:
        """The part for the answer's next output."""
        self.tokens += len(output.token_ids)
        self.cached_tokens = output.cached_tokens
        block = None
        if self._logprobs is not None and (tokens := visible(self._tokenizer, output.logprobs)):
            block = self._logprobs.block(tokens)
        reason = None
        if output.finish_reason is not None:
            reason = "length" if output.finish_reason == "length" else "stop"
        return self._part(output.text, block, reason)

    def whole(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The choice that these parts make up."""
        blocks = [part["logprobs"] for part in parts if part["logprobs"]]
        return self._part(
            "".join(part["text"] for part in parts),
            joined_blocks(blocks) if self._logprobs is not None else None,
            parts[-1]["finish_reason"] if parts else None,
        )

    def _part(self, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
        return {"text": text, "index": self.index, "logprobs": logprobs, "finish_reason": finish_reason}
