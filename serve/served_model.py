"""What the server needs of a loaded model. ``jaxdeploy.loading.LoadedModel`` is one; tests bring their own."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jaxdeploy.engine.request import Output, Request, TokenLogprobs
from jaxdeploy.text.chat_template import ChatTemplate
from jaxdeploy.text.tokenizer import Tokenizer


class Runner(Protocol):
    """The engine's thread, as ``jaxdeploy.engine.runner.EngineRunner``."""

    @property
    def alive(self) -> bool:
        """True while requests are taken."""
        ...

    def submit(self, request: Request, sink: Callable[[list[Output]], None]) -> None:
        """Queue a request; ``sink`` is called on the engine's thread, once a step."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request before its next step."""
        ...


class ServedModel(Protocol):
    """A model that answers.

    Attributes:
        name: what clients call it, unless the server's options say otherwise.
        config: has ``family`` and ``vocab_size``.
        runner: takes requests.
        engine: has ``session_len``, ``end_ids`` and ``limits.batch_size``; its scheduler and allocator are read for metrics.
        tokenizer, chat_template: turn messages into tokens, and tokens into text.
        generation_defaults: the checkpoint's ``generation_config.json``.
    """

    name: str
    config: Any
    runner: Any
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    generation_defaults: dict[str, Any]

    @property
    def engine(self) -> Any:
        """The engine; requests go through ``runner``."""
        ...

    @property
    def embedder(self) -> Any:
        """Has ``embed(ids, pooling)``: an array with the vector of a text, pooled by ``mean`` or ``last``. May take long."""
        ...

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[TokenLogprobs]:
        """Log-probabilities of ``ids[1:]``, each given what stands before it, with ``top`` alternatives. May take long."""
        ...

    def close(self) -> None:
        """Stop the engine."""
        ...
