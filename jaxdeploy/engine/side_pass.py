"""A forward pass over one whole text, beside the engine: same weights, a cache of its own."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.engine.limits import Limits
from jaxdeploy.errors import PromptTooLongError
from jaxdeploy.model.decoder import Decoder, run_layers
from jaxdeploy.model.inputs import ModelInputs

CHUNK_TOKENS = 256

Reduce = Callable[[dict, Float[Array, "C D"], Int32[Array, " C"]], Any]
"""(params, hidden states, each token's follower) to what is wanted of a chunk; traced once."""


class SidePass:
    """Runs texts one at a time in chunks of a fixed size; thread-safe. Compiles at its first use.

    The cache lives only while a text is run; on a GPU it comes out of the margin that the engine's memory plan leaves.

    Args:
        model, params: as the engine runs them.
        limits: gives session length, page size and dtype.
        quant_policy: how keys and values are stored.
        reduce: what to compute from each chunk.
        longest: most tokens of a text; the cache is sized for it. None is the session length.
    """

    def __init__(
        self,
        model: Decoder,
        params: dict,
        limits: Limits,
        reduce: Reduce,
        *,
        quant_policy: int,
        longest: int | None = None,
    ):
        self.longest = min(limits.session_len, longest or limits.session_len)
        self._model, self._params, self._limits, self._reduce = model, params, limits, reduce
        self._quant_policy = quant_policy
        self._chunk = min(CHUNK_TOKENS, self.longest)
        self._num_pages = -(-self.longest // limits.page_size)
        self._lock = threading.Lock()
        self._run_chunk = jax.jit(self._trace_chunk, donate_argnums=1)

    def run(self, ids: list[int]) -> Iterator[tuple[int, Any]]:
        """For each chunk, how many of its rows are tokens of the text, and the reduced chunk as numpy arrays.

        Raises:
            PromptTooLongError: more tokens than ``longest``.
        """
        if len(ids) > self.longest:
            raise PromptTooLongError(
                f"the text has {len(ids)} tokens, more than the {self.longest} that fit", param="prompt"
            )
        config = self._model.config
        with self._lock:
            pages = KVPages.create(
                config,
                self._num_pages,
                page_size=self._limits.page_size,
                quant_policy=self._quant_policy,
                dtype=self._limits.dtype,
            )
            for start in range(0, len(ids), self._chunk):
                count = min(self._chunk, len(ids) - start)
                packed = np.zeros((2, self._chunk), np.int32)
                packed[0, :count] = ids[start : start + count]
                followers = ids[start + 1 : start + count + 1]
                packed[1, : len(followers)] = followers
                place = np.array([start, count, len(ids)], np.int32)
                pages, reduced = self._run_chunk(self._params, pages, packed, place)
                yield count, jax.device_get(reduced)

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
        return pages, self._reduce(params, hidden, packed[1])
