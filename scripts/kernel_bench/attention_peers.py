"""Other attention on the same GPU: torch's on contiguous keys and values, cuDNN's, and JAX's own paged attention."""

import sys
import warnings
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.timing import microseconds

LARGEST = 4e9
"""Bytes of a cache that peers are timed on: torch and JAX hold two caches or more at a time, each for itself."""


def decode(
    batch: int, context: int, *, heads: int, kv_heads: int, head_dim: int, page: int, copies: int
) -> dict[str, Any]:
    """Microseconds of each peer at one bfloat16 shape of decode; what is missing or fails is left out.

    Args:
        copies: caches that calls take turns with.
    """
    if 4 * batch * context * kv_heads * head_dim > LARGEST:
        return {}
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "copies": copies}
    return torch_decode(batch, context, **shape) | jax_paged_decode(batch, context, page=page, **shape)


def torch_decode(batch: int, context: int, *, heads: int, kv_heads: int, head_dim: int, copies: int) -> dict[str, Any]:
    """torch's attention on contiguous keys and values, launches included."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    shape = (batch, kv_heads, context, head_dim)
    caches = [[torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2)] for _ in range(copies)]
    q = torch.randn(batch, heads, 1, head_dim, dtype=torch.bfloat16, device="cuda")
    times = []
    for run in range(6):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        for k, v in caches:
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        ended.record()
        torch.cuda.synchronize()
        if run:
            times.append(begun.elapsed_time(ended) * 1e3 / copies)
    del caches
    torch.cuda.empty_cache()
    return {"torch us": median(times)}


def jax_paged_decode(
    batch: int, context: int, *, heads: int, kv_heads: int, head_dim: int, page: int, copies: int
) -> dict[str, Any]:
    """The paged attention that comes with JAX (Triton, deprecated), while it does; all its kernels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention
    except ImportError:
        return {}
    per_row = -(-context // page)
    q = jax.random.normal(jax.random.key(0), (batch, heads, head_dim), jnp.bfloat16)
    table = jnp.asarray(np.random.default_rng(0).permutation(batch * per_row).reshape(batch, per_row), jnp.int32)
    lengths = jnp.full((batch,), context, jnp.int32)
    pool = (kv_heads, batch * per_row, page, head_dim)
    pools = [jax.random.normal(jax.random.key(i), pool, jnp.bfloat16) for i in range(2 * min(copies, 4))]

    def calls(q, pools, table, lengths):
        return [paged_attention(q, k, v, table, lengths) for k, v in zip(pools[::2], pools[1::2], strict=True)]

    try:
        return {"JAX paged us": microseconds(jax.jit(calls), len(pools) // 2, q, pools, table, lengths)}
    except Exception as error:  # whatever a deprecated kernel runs into is no reason to stop
        print(f"JAX's paged attention at batch {batch}, {context} tokens: {str(error)[:200]}", file=sys.stderr)
        return {}


def cudnn_prefill(tokens: int, *, heads: int, kv_heads: int, head_dim: int) -> dict[str, Any]:
    """cuDNN's flash attention on one dense causal prompt."""
    sizes = (heads, kv_heads, kv_heads)
    q, k, v = (
        jax.random.normal(jax.random.key(i), (1, tokens, n, head_dim), jnp.bfloat16) for i, n in enumerate(sizes)
    )
    attend = jax.jit(partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"))
    time = microseconds(attend, 1, q, k, v)
    return {"cuDNN us": time, "cuDNN TFLOP/s": 2 * tokens * tokens * heads * head_dim / time / 1e6}
