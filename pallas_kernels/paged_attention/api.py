"""Shapes, errors and the choice of implementation of paged attention."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.implementation import run_implementation
from pallas_kernels.kv_write.api import BITS
from pallas_kernels.paged_attention import mosaic
from pallas_kernels.paged_attention.debug import check_pages, check_queries
from pallas_kernels.paged_attention.decode_layout import MOST_QUERIES
from pallas_kernels.paged_attention.reference import Context, Pages, decode_reference, prefill_reference


def _check(q: Array, k_pages: Pages, v_pages: Pages) -> None:
    if k_pages.values.shape != v_pages.values.shape or k_pages.bits != v_pages.bits:
        raise ValueError(f"K and V pools differ: {k_pages.values.shape} and {v_pages.values.shape}")
    if k_pages.bits not in BITS:
        raise ValueError(f"bits={k_pages.bits} must be one of {BITS}")
    if any((pages.pairs is None) != (k_pages.bits == 16) for pages in (k_pages, v_pages)):
        raise ValueError(
            f"bits={k_pages.bits}: pools of 8 and 4 bits need (scale, offset) pairs, those of 16 have none"
        )
    heads, kv_heads = q.shape[1], k_pages.values.shape[2]
    if heads % kv_heads:
        raise ValueError(f"{heads=} must be divisible by {kv_heads=}")
    stored = q.shape[-1] * min(k_pages.bits, 8) // 8
    if k_pages.values.shape[-1] != stored:
        raise ValueError(
            f"head_dim {q.shape[-1]} at {k_pages.bits} bits takes {stored} values, the pool has {k_pages.values.shape[-1]}"
        )


def paged_decode(
    q: Float[Array, "B N H"],
    k_pages: Pages,
    v_pages: Pages,
    layer: Int32[Array, ""] | int,
    block_table: Int32[Array, "B W"],
    context_lens: Int32[Array, " B"],
    window: Int32[Array, ""] | int = 0,
    *,
    scale: float,
    soft_cap: float = 0.0,
    implementation: str | None = None,
) -> Float[Array, "B N H"]:
    """Attention of one new token per sequence, whose key and value are already in its pages.

    Args:
        q: queries after RoPE.
        k_pages, v_pages: pools, bits 16, 8 or 4.
        layer: which layer's pages; may be traced.
        block_table: pages of each sequence in order; entries past its context are not looked at.
        context_lens: tokens in the cache, the new one included; 0 for a padding row, which comes out 0.
        window: a key is seen if fewer than ``window`` positions back; 0 sees all.
        scale: factor on q.k, usually H ** -0.5.
        soft_cap: c in ``c * tanh(q.k / c)``; 0 for none.
        implementation: name one of IMPLEMENTATIONS to fail if it can't; None takes the first that can.

    Raises:
        ValueError: shapes that don't fit each other, an unknown implementation or one that can't take the call.
    """
    _check(q, k_pages, v_pages)
    _, pages, _, page_size, _ = k_pages.values.shape
    check_pages(block_table, context_lens, pages=pages, page_size=page_size)
    bits, options = k_pages.bits, {"scale": scale, "soft_cap": soft_cap}

    def run(decode, q, k, k_pairs, v, v_pairs, *rest):
        return decode(q, Context(Pages(k, k_pairs, bits), Pages(v, v_pairs, bits), *rest), **options)

    return run_implementation(
        implementation, mosaic.reason_not_decode(q, k_pages, block_table.shape[1]),
        partial(run, mosaic.decode), partial(run, decode_reference),
        q, k_pages.values, k_pages.pairs, v_pages.values, v_pages.pairs,
        jnp.asarray(layer, jnp.int32), block_table, context_lens, jnp.asarray(window, jnp.int32),
    )  # fmt: skip


def paged_prefill(
    q: Float[Array, "T N H"],
    k_pages: Pages,
    v_pages: Pages,
    layer: Int32[Array, ""] | int,
    block_table: Int32[Array, "B W"],
    query_start: Int32[Array, "B+1"],
    context_lens: Int32[Array, " B"],
    window: Int32[Array, ""] | int = 0,
    *,
    scale: float,
    soft_cap: float = 0.0,
    max_queries: int | None = None,
    mixed: bool = False,
    implementation: str | None = None,
) -> Float[Array, "T N H"]:
    """Causal attention of ragged chunks of new tokens over their cached prefix and themselves.

    Row b owns the queries ``query_start[b]:query_start[b + 1]``; they are the last ones of its ``context_lens[b]`` tokens, all of
    which are already in its pages. Rows that have queries come first. Queries of no row come out 0. Other arguments as in
    ``paged_decode``.

    Args:
        max_queries: no row has more queries than this. Where they are few (a draft that is checked, up to MOST_QUERIES) the decode
            kernel takes them: it cuts long contexts for many multiprocessors, and reads them once for all heads of a KV head.
        mixed: many rows may have one query; the decode kernel takes those. Not looked at if ``max_queries`` says so of all.

    Raises:
        ValueError: shapes that don't fit each other, an unknown implementation or one that can't take the call.
    """
    _check(q, k_pages, v_pages)
    _, pages, _, page_size, _ = k_pages.values.shape
    check_pages(block_table, context_lens, pages=pages, page_size=page_size)
    bits, options = k_pages.bits, {"scale": scale, "soft_cap": soft_cap}

    def run(prefill, q, query_start, k, k_pairs, v, v_pairs, *rest):
        context = Context(Pages(k, k_pairs, bits), Pages(v, v_pairs, bits), *rest)
        return prefill(q, context, query_start, **options)

    kernel, (rows, width) = mosaic.prefill, block_table.shape
    reason = mosaic.reason_not_prefill(q, k_pages, rows)
    if mixed and mosaic.reason_not_decode(q, k_pages, width, rows=rows) is None:
        kernel = mosaic.mixed
    if max_queries is not None:
        check_queries(query_start, most=max_queries)
        if max_queries <= MOST_QUERIES:
            # A row may have no query: also of one query each, rows and tokens are not the same.
            queries = max(2, max_queries)
            reason = mosaic.reason_not_decode(q, k_pages, width, rows=rows, queries=queries)
            kernel = partial(mosaic.decode, queries=queries)
    return run_implementation(
        implementation, reason,
        partial(run, kernel), partial(run, prefill_reference),
        q, query_start, k_pages.values, k_pages.pairs, v_pages.values, v_pages.pairs,
        jnp.asarray(layer, jnp.int32), block_table, context_lens, jnp.asarray(window, jnp.int32),
    )  # fmt: skip
