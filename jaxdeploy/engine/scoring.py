"""Log-probabilities of given text, computed as the engine would have: in chunks, over a (maybe quantized) paged cache."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.generation import MAX_LOGPROBS
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.request import TokenLogprobs
from jaxdeploy.errors import PromptTooLongError
from jaxdeploy.model.decoder import Decoder, next_logits, run_layers
from jaxdeploy.model.inputs import ModelInputs

CHUNK_TOKENS = 256


class Scorer:
    """Scores texts one at a time with a cache of its own, next to a running engine. Compiles at its first use.

    Args:
        model, params: as the engine runs them.
        limits: gives session length, page size and dtype.
        quant_policy: how keys and values are stored while scoring.
        longest: most tokens of a text; the cache is sized for it.
    """

    def __init__(self, model: Decoder, params: dict, limits: Limits, *, quant_policy: int, longest: int | None = None):
        self.params = params
        self._model, self._limits, self._quant_policy = model, limits, quant_policy
        self.longest = min(limits.session_len, longest or limits.session_len)
        self._chunk = min(CHUNK_TOKENS, self.longest)
        self._num_pages = -(-self.longest // limits.page_size)
        self._lock = threading.Lock()
        self._score_chunk = jax.jit(self._trace_chunk, donate_argnums=1)

    def token_logprobs(self, ids: list[int]) -> np.ndarray:
        """Natural log-probability of each token but the first, given those before it: float32 [len(ids) - 1]."""
        return np.concatenate([np.zeros(0, np.float32), *(chosen for chosen, _, _ in self._chunks(ids))])

    def prompt_logprobs(self, ids: list[int], top: int) -> list[TokenLogprobs]:
        """As ``token_logprobs``, with the ``top`` (at most 20) likeliest tokens of each place beside it."""
        found, place = [], 1
        for chosen, top_ids, top_values in self._chunks(ids):
            for logprob, some_ids, values in zip(chosen, top_ids[:, :top], top_values[:, :top], strict=True):
                alternatives = tuple(zip(some_ids.tolist(), values.tolist(), strict=True))
                found.append(TokenLogprobs(ids[place], float(logprob), alternatives))
                place += 1
        return found

    def _chunks(self, ids: list[int]):
        if len(ids) > self.longest:
            raise PromptTooLongError(
                f"the text has {len(ids)} tokens, more than the {self.longest} that fit", param="prompt"
            )
        with self._lock:
            pages = KVPages.create(
                self._model.config,
                self._num_pages,
                page_size=self._limits.page_size,
                quant_policy=self._quant_policy,
                dtype=self._limits.dtype,
            )
            for start in range(0, len(ids) - 1, self._chunk):
                count = min(self._chunk, len(ids) - 1 - start)
                packed = np.zeros((2, self._chunk), np.int32)
                packed[0, :count] = ids[start : start + count]
                packed[1, :count] = ids[start + 1 : start + count + 1]
                place = np.array([start, count, len(ids)], np.int32)
                pages, *scores = self._score_chunk(self.params, pages, packed, place)
                yield tuple(part[:count] for part in jax.device_get(scores))

    def _trace_chunk(self, params: dict, pages: KVPages, packed: Int32[Array, "2 C"], place: Int32[Array, " 3"]):
        start, count, length = place
        size = packed.shape[1]
        inputs = ModelInputs(
            tokens=packed[0],
            positions=start + jnp.arange(size, dtype=jnp.int32),
            rows=jnp.zeros(size, jnp.int32),
            query_start=jnp.stack([jnp.zeros_like(count), count]),
            context_lens=(start + count)[None],
            rope_lengths=length[None],
            block_table=jnp.arange(self._num_pages, dtype=jnp.int32)[None],
        )
        hidden, pages = run_layers(self._model, params, inputs, pages)
        logits = next_logits(self._model, params, hidden)
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        chosen = jnp.take_along_axis(logprobs, packed[1][:, None], axis=-1)[:, 0]
        values, ids = jax.lax.top_k(logprobs, min(MAX_LOGPROBS, logprobs.shape[1]))
        return pages, chosen, ids, values
