"""How much of the sampler a batch needs."""

from collections.abc import Iterable
from enum import IntEnum

from jaxdeploy.config.generation import GenerationConfig


class Extent(IntEnum):
    """Each includes those before it. One program is compiled for each, and the host takes the least that does.

    Deciding on the device would make the host wait: XLA reads the condition of a branch back before it launches one.
    """

    GREEDY = 0  # the likeliest token
    DRAW = 1  # temperature
    FILTER = 2  # top-k, top-p, min-p
    ALL = 3  # penalties, biases, bad tokens, held-back end tokens, grammars, log-probabilities

    @classmethod
    def of(cls, config: GenerationConfig, *, grammar: bool) -> "Extent":
        """What one answer needs."""
        edits = config.has_penalties or config.logit_bias or config.bad_token_ids or config.min_new_tokens
        if grammar or edits or config.logprobs is not None:
            return cls.ALL
        if config.greedy:
            return cls.GREEDY
        return cls.FILTER if config.top_k or config.top_p < 1 or config.min_p else cls.DRAW

    @classmethod
    def most(cls, extents: Iterable["Extent"]) -> "Extent":
        """What a batch needs."""
        return max(extents, default=cls.GREEDY)
