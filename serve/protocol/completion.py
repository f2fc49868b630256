"""The request of ``/v1/completions``."""

from typing import Annotated

from pydantic import Field

from serve.protocol.request_model import Count, TokenId
from serve.protocol.sampling import SamplingRequest, TopLogprobs
from serve.protocol.tools import GuidedFields

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(SamplingRequest, GuidedFields):
    """Texts to go on with. ``max_tokens`` may be 0 together with ``echo``, to score the prompt alone."""

    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: Count | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    add_special_tokens: bool | None = None

    @property
    def new_tokens(self) -> int:
        """Most tokens of an answer."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        return [prompt] if isinstance(prompt[0], int) else list(prompt)  # pyright: ignore[reportReturnType]
