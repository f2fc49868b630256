"""What the engine is asked for, and one answer in the making."""

from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.ngram_drafter import NgramDrafter
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.text.detokenizer import IncrementalDetokenizer
from jaxdeploy.text.stop_strings import StopStrings

FinishReason = Literal["stop", "length", "abort", "error"]


class Constraint(Protocol):
    """A grammar that an answer must follow, token by token."""

    def mask(self) -> np.ndarray | None:
        """uint32 words, one bit per token, set where the token may come next; None if anything may.

        Raises:
            RequestError: the grammar can't be followed any further; the answer ends with an error.
        """
        ...

    def advance(self, token: int) -> None:
        """The answer goes on with this token."""
        ...


@dataclass(slots=True)
class Request:
    """One prompt and how to answer it.

    Attributes:
        id: unique among the requests in flight.
        prompt_ids: at least one token.
        config: options; ``config.n`` answers are made.
        constraint: makes one Constraint per answer; None leaves answers free.
        base_seed: the engine's choice where ``config.random_seed`` is None.
    """

    id: str
    prompt_ids: list[int]
    config: GenerationConfig
    constraint: Callable[[], Constraint] | None = None
    base_seed: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a chosen token and of the likeliest ones, under the model's own distribution."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What one step added to one answer. The last one of an answer has a finish_reason.

    Attributes:
        index: which of the request's n answers.
        text: new text; may be empty while a character or a stop string is undecided.
        token_ids: new tokens.
        logprobs: of the new tokens, where asked for.
        input_tokens, output_tokens: totals so far.
        cached_tokens: how many of the input tokens were in the cache already when the answer was admitted.
        error: what went wrong, if finish_reason is "error".
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer: its tokens, its place in the cache and its text so far.

    Attributes:
        token_ids: prompt, then answer.
        pending: tokens that the steps launched so far sample, but that have not been read yet; they follow ``token_ids``. A row
            with a draft counts as one.
        computed: tokens whose keys and values are in the cache once those steps have run.
        prefill_target: the sequence is in prefill until this many are; then each step feeds one token and samples the next.
        pages: its block table; C integers, which NumPy copies at once.
        slot: its place in the sampler's state; None while it waits.
        rope_length: tokens that it can reach, fixed for its life.
        max_tokens: prompt and answer together end here.
        salt: see ``prefix_salt``.
        extent: what it needs of the sampler.
        drafter: guesses tokens; None where nobody guesses.
        published: how many of its pages the prefix index knows. chain: what stands before the next one.
        cached_tokens: prompt tokens found in the cache at the first admission; None before it.
    """

    request: Request
    index: int
    token_ids: list[int]
    prompt_len: int
    rope_length: int
    max_tokens: int
    seed: int
    end_ids: frozenset[int]
    detokenizer: IncrementalDetokenizer
    stops: StopStrings | None
    salt: Hashable = None
    extent: Extent = Extent.ALL
    drafter: NgramDrafter | None = None
    constraint: Constraint | None = None
    pending: int = 0
    computed: int = 0
    prefill_target: int = 0
    pages: "array[int]" = field(default_factory=lambda: array("i"))
    slot: int | None = None
    published: int = 0
    chain: Hashable = None
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None

    @property
    def made(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def reached(self) -> int:
        """Tokens of prompt and answer, those that are not read yet included."""
        return len(self.token_ids) + self.pending

    @property
    def can_go_on(self) -> bool:
        """False while the next step depends on a token that is not read yet: by a grammar or a draft, or because it is the last."""
        waits = self.constraint is not None or (
            self.drafter is not None and self.drafter.is_active(len(self.token_ids))
        )
        return self.reached < self.max_tokens and not (self.pending and waits)

    @property
    def prefilling(self) -> bool:
        """True until all tokens known at admission are in the cache."""
        return self.computed < self.prefill_target

    def append(self, token: int) -> str:
        """Take the next token; returns the text that is certain now and sets finish_reason if the answer ends."""
        self.token_ids.append(token)
        config = self.request.config
        if token in self.end_ids and self.made > config.min_new_tokens:
            self.finish_reason = "stop"
            return self._rest()
        if self.constraint is not None:
            self.constraint.advance(token)
        text = self.detokenizer.add([token])
        if self.stops is not None and self.made > config.min_new_tokens:
            text, stopped = self.stops.feed(text)
            if stopped is not None:
                self.finish_reason = "stop"
                return text
        if len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
            text += self._rest()
        return text

    def _rest(self) -> str:
        """Text still held back, once no more can come."""
        tail = self.detokenizer.flush()
        if self.stops is None:
            return tail
        text, stopped = self.stops.feed(tail)
        if stopped is not None:
            self.finish_reason = "stop"
            return text
        return text + self.stops.flush()
