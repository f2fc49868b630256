"""Log-probabilities of given text, computed as the engine would have: in chunks, over a (maybe quantized) paged cache."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeploy.config.generation import MAX_LOGPROBS
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.request import TokenLogprobs
from jaxdeploy.engine.side_pass import SidePass
from jaxdeploy.model.decoder import Decoder, next_logits


class Scorer:
    """Scores texts one at a time, next to a running engine; see SidePass for its arguments."""

    def __init__(self, model: Decoder, params: dict, limits: Limits, *, quant_policy: int, longest: int | None = None):
        def reduce(params, hidden, followers):
            logprobs = jax.nn.log_softmax(next_logits(model, params, hidden), axis=-1)
            chosen = jnp.take_along_axis(logprobs, followers[:, None], axis=-1)[:, 0]
            values, ids = jax.lax.top_k(logprobs, min(MAX_LOGPROBS, logprobs.shape[1]))
            return chosen, ids, values

        self._pass = SidePass(model, params, limits, reduce, quant_policy=quant_policy, longest=longest)

    def token_logprobs(self, ids: list[int]) -> np.ndarray:
        """Natural log-probability of each token but the first, given those before it: float32 [len(ids) - 1]."""
        chunks = [chosen[:count] for count, (chosen, _, _) in self._pass.run(ids)]
        return np.concatenate(chunks)[:-1]  # the last token has no follower

    def prompt_logprobs(self, ids: list[int], top: int) -> list[TokenLogprobs]:
        """As ``token_logprobs``, with the ``top`` (at most 20) likeliest tokens of each place beside it."""
        found: list[TokenLogprobs] = []
        for count, (chosen, top_ids, top_values) in self._pass.run(ids):
            for row in range(min(count, len(ids) - 1 - len(found))):
                alternatives = zip(top_ids[row, :top].tolist(), top_values[row, :top].tolist(), strict=True)
                token = ids[len(found) + 1]
                found.append(TokenLogprobs(token, float(chosen[row]), tuple(alternatives)))
        return found
