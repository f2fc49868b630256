"""Generation inside your own JAX program: pure, jitted functions over a cache that you hold.

No engine, no threads: ``prefill`` and ``decode_step`` take parameters and a cache and return logits and the new cache, so they
compose with ``jax.lax.scan``, ``jax.grad`` of what comes after them, or a sampler of your own.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.demo import demo_model_path
from jaxdeploy.kv_rotation import fit_rotation, with_rotation
from jaxdeploy.loading import tokenizer_of
from jaxdeploy.model.decoder import Decoder, next_logits, run_layers
from jaxdeploy.model.inputs import ModelInputs
from jaxdeploy.pytree import Leaf
from jaxdeploy.text.tokenizer import Tokenizer
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.loader import load_parameters
from jaxdeploy.weights.tiled_tensor import tile_weights


class Model(NamedTuple):
    """A decoder (hashable: a static argument), its parameters and its tokenizer."""

    decoder: Decoder
    params: dict[str, Any]
    tokenizer: Tokenizer


@flax.struct.dataclass
class Cache:
    """Keys and values of B sequences, each with pages of its own, and how long each sequence is."""

    pages: KVPages
    block_table: Leaf  # int32 [B, W]
    lengths: Leaf  # int32 [B]


def load(model: str | Path | None = None, *, dtype: str = "float32", kv_rotation: bool = False) -> Model:
    """Load a checkpoint's weights, without an engine.

    Args:
        model: folder or GGUF file; None is the embedded demo model.
        dtype: of activations and dense weights.
        kv_rotation: turn keys and values before they are stored, for caches of quant_policy 8 and above all 4.
    """
    checkpoint = open_checkpoint(demo_model_path() if model is None else Path(model))
    if kv_rotation:
        checkpoint = with_rotation(checkpoint, EngineConfig(quant_policy=4))
    try:
        params, tokenizer = load_parameters(checkpoint, dtype), tokenizer_of(checkpoint)
        decoder = Decoder(checkpoint.config, dtype)
        return Model(decoder, _for_kernels(fit_rotation(decoder, params, tokenizer), dtype), tokenizer)
    finally:
        checkpoint.close()


def _for_kernels(params: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Int4 weights in the order that a GPU's kernels read, which take activations of 16 bits."""
    return tile_weights(params) if jax.default_backend() == "gpu" and dtype != "float32" else params


def new_cache(decoder: Decoder, batch: int, length: int, *, quant_policy: int = 0, page_size: int = 64) -> Cache:
    """An empty cache for ``batch`` sequences of at most ``length`` tokens each.

    Args:
        quant_policy: 0 stores K and V in the decoder's dtype, 8 and 4 quantize them.
        page_size: tokens of a page.
    """
    width = -(-length // page_size)
    pages = KVPages.create(
        decoder.config, batch * width, page_size=page_size, quant_policy=quant_policy, dtype=decoder.dtype
    )
    table = jnp.arange(batch * width, dtype=jnp.int32).reshape(batch, width)
    return Cache(pages, table, jnp.zeros(batch, jnp.int32))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(
    decoder: Decoder, params: dict[str, Any], cache: Cache, tokens: Int32[Array, "B T"], counts: Int32[Array, " B"]
) -> tuple[Float[Array, "B V"], Cache]:
    """Append ``counts[b]`` tokens to each sequence b and score what comes next.

    Args:
        decoder, params: of ``load``.
        cache: donated; use the one returned. May hold earlier tokens (chunked prefill, a next turn).
        tokens: padded on the right.
        counts: tokens of each row that count, 1 to T.

    Returns:
        Logits (float32) after each row's last token, and the cache with the new tokens.

    A request whose RoPE depends on the length it can reach (dynamic NTK, longrope) takes the cache's capacity for that length.
    """
    batch, width = tokens.shape
    query_start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    flat = jnp.arange(batch * width, dtype=jnp.int32)
    rows = jnp.clip(jnp.searchsorted(query_start, flat, side="right").astype(jnp.int32) - 1, 0, batch - 1)
    columns = jnp.clip(flat - query_start[rows], 0, width - 1)
    inputs = ModelInputs(
        tokens=tokens[rows, columns],
        positions=jnp.where(flat < query_start[-1], cache.lengths[rows] + columns, 0),
        rows=rows,
        query_start=query_start,
        context_lens=cache.lengths + counts,
        rope_lengths=_capacity(cache),
        block_table=cache.block_table,
    )
    return _run(decoder, params, cache, inputs)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode_step(
    decoder: Decoder, params: dict[str, Any], cache: Cache, tokens: Int32[Array, " B"]
) -> tuple[Float[Array, "B V"], Cache]:
    """Append one token to each sequence and score what comes next; arguments and results as for ``prefill``."""
    rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    inputs = ModelInputs(
        tokens=tokens,
        positions=cache.lengths,
        rows=rows,
        query_start=jnp.arange(tokens.shape[0] + 1, dtype=jnp.int32),
        context_lens=cache.lengths + 1,
        rope_lengths=_capacity(cache),
        block_table=cache.block_table,
        decode=True,
    )
    return _run(decoder, params, cache, inputs)


def _capacity(cache: Cache) -> Int32[Array, " B"]:
    batch, width = cache.block_table.shape
    return jnp.full(batch, width * cache.pages.page_size, jnp.int32)


def _run(decoder: Decoder, params, cache: Cache, inputs: ModelInputs):
    hidden, pages = run_layers(decoder, params, inputs, cache.pages)
    logits = next_logits(decoder, params, hidden[inputs.last_tokens])
    return logits, Cache(pages, cache.block_table, inputs.context_lens)
