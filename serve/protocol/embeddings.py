"""The request of ``/v1/embeddings``."""

from typing import Literal

from serve.protocol.request_model import PositiveCount, RequestModel, TokenId

MAX_INPUTS = 2048
"""OpenAI's limit."""


class EmbeddingRequest(RequestModel):
    """Texts, or their tokens, to turn into vectors. ``pooling`` is not OpenAI's."""

    input: str | list[TokenId] | list[str] | list[list[TokenId]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: PositiveCount | None = None
    user: str | None = None

    pooling: Literal["mean", "last"] | None = None

    def inputs(self) -> list[str | list[int]]:
        """The inputs, one or many."""
        given = self.input
        if isinstance(given, str):
            return [given]
        return [given] if given and isinstance(given[0], int) else list(given)  # pyright: ignore[reportReturnType]
