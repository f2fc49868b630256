"""What the Python API answers."""

from dataclasses import dataclass, field

from jaxdeploy.engine.request import FinishReason, TokenLogprobs


@dataclass
class Response:
    """An answer, or (from ``stream_infer``) what was added to one.

    Attributes:
        text: the answer; the new text in a stream.
        generate_token_len: tokens of the answer so far, its end token included.
        input_token_len: tokens of the prompt.
        finish_reason: "stop" (end token or stop text), "length", "abort" or "error"; None while a stream goes on.
        token_ids: tokens of the answer; the new ones in a stream.
        logprobs: per token, where asked for.
        index: which prompt it answers. answer: which of the n answers to it.
    """

    text: str
    generate_token_len: int = 0
    input_token_len: int = 0
    finish_reason: FinishReason | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    index: int = 0
    answer: int = 0

    def extend(self, delta: "Response") -> None:
        """Add a stream's next part."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.generate_token_len, self.input_token_len = delta.generate_token_len, delta.input_token_len
        self.finish_reason = delta.finish_reason
