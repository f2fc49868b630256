"""Paged attention on Hopper: which calls its kernels take, and the calls."""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from pallas_kernels.device import reason_not_hopper
from pallas_kernels.paged_attention import decode_layout
from pallas_kernels.paged_attention.choice import choose_decode, choose_prefill
from pallas_kernels.paged_attention.decode_layout import DecodeConfig, Shape
from pallas_kernels.paged_attention.decode_mosaic import decode_partials, decode_rows, split_of
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.merge_mosaic import merge_partials
from pallas_kernels.paged_attention.prefill_mosaic import prefill_tiles_attention
from pallas_kernels.paged_attention.prefill_shape import PrefillShape
from pallas_kernels.paged_attention.prefill_tiles import Tiles
from pallas_kernels.paged_attention.reference import Context, Pages
from pallas_kernels.ptx import SHORT_NAMES


def _reason_not_here(q: Array, k_pages: Pages) -> str | None:
    if reason := reason_not_hopper():
        return reason
    same = k_pages.bits != 16 or q.dtype == k_pages.values.dtype
    if str(q.dtype) in SHORT_NAMES and same:
        return None
    return f"queries of {q.dtype} and pages of {k_pages.values.dtype} must both be bfloat16 or both float16"


def decode_shape(
    q: Float[Array, "T N H"],
    k_pages: Pages,
    rows: int,
    table_width: int,
    *,
    queries: int,
    scale: float,
    soft_cap: float,
) -> Shape | str:
    """The sizes of a call, or why its types are not the kernel's."""
    if reason := _reason_not_here(q, k_pages):
        return reason
    _, pages, kv_heads, page_size, _ = k_pages.values.shape
    name = SHORT_NAMES[str(q.dtype)]
    return Shape(
        batch=rows, heads=q.shape[1], kv_heads=kv_heads, pages=pages, page_size=page_size, table_width=table_width,
        stored=Stored(q.shape[2], k_pages.bits, name), query_dtype=name, scale=scale, soft_cap=soft_cap, queries=queries,
    )  # fmt: skip


def reason_not_decode(
    q: Float[Array, "T N H"],
    k_pages: Pages,
    table_width: int,
    config: DecodeConfig | None = None,
    *,
    rows: int | None = None,
    queries: int = 1,
) -> str | None:
    """Why the decode kernel can't take a call of ``queries`` tokens a row at most; None if it can. ``rows`` is T if not given."""
    rows = q.shape[0] if rows is None else rows
    shape = decode_shape(q, k_pages, rows, table_width, queries=queries, scale=1.0, soft_cap=0.0)
    if isinstance(shape, str):
        return shape
    return decode_layout.reason_not(shape, config or choose_decode(shape))


def decode(
    q: Float[Array, "T N H"],
    context: Context,
    query_start: Int32[Array, " S"] | None = None,
    *,
    queries: int = 1,
    scale: float,
    soft_cap: float = 0.0,
    config: DecodeConfig | None = None,
) -> Float[Array, "T N H"]:
    """As ``decode_reference``, by the kernels; with ``query_start`` as ``prefill_reference``, of ``queries`` tokens a row at most.

    Raises:
        ValueError: a call that ``reason_not_decode`` names a reason for.
    """
    k_pages, v_pages, layer, block_table, lens, window = context
    shape = decode_shape(q, k_pages, *block_table.shape, queries=queries, scale=scale, soft_cap=soft_cap)
    if isinstance(shape, str):
        raise ValueError(f"the decode kernel can't take this call: {shape}")
    config = config or choose_decode(shape)
    if reason := decode_layout.reason_not(shape, config):
        raise ValueError(f"the decode kernel can't take this call: {reason}")
    if (query_start is None) != (queries == 1):
        raise ValueError(f"{queries=}: 1 means a token for every row, and no query_start; more need one")
    layer, window, pools = layer.reshape(1), window.reshape(1), _pools(k_pages, v_pages)
    split = split_of(shape, config)
    if decode_layout.merges(shape, config, split):
        return decode_rows(q, pools, layer, block_table, lens, window, shape, config)
    partials, stats = decode_partials(q, pools, layer, block_table, query_start, lens, window, shape, config)
    return merge_partials(partials, stats, lens, window, query_start, shape, split, q.shape[0], str(jnp.dtype(q.dtype)))


def prefill_shape(
    q: Float[Array, "T N H"], k_pages: Pages, rows: int, *, scale: float, soft_cap: float
) -> PrefillShape | str:
    """The sizes of a call, or why the prefill kernel can't take it."""
    if reason := _reason_not_here(q, k_pages):
        return reason
    _, pages, kv_heads, page_size, _ = k_pages.values.shape
    shape = PrefillShape(
        tokens=q.shape[0], heads=q.shape[1], kv_heads=kv_heads, head_dim=q.shape[2], pages=pages, page_size=page_size,
        rows=rows, dtype=str(q.dtype), bits=k_pages.bits, scale=scale, soft_cap=soft_cap,
    )  # fmt: skip
    shape = choose_prefill(shape)
    return shape.reason_not or shape


def reason_not_prefill(q: Float[Array, "T N H"], k_pages: Pages, rows: int) -> str | None:
    """Why the prefill kernel can't take a call; None if it can."""
    shape = prefill_shape(q, k_pages, rows, scale=1.0, soft_cap=0.0)
    return shape if isinstance(shape, str) else None


def prefill(
    q: Float[Array, "T N H"],
    context: Context,
    query_start: Int32[Array, " S"],
    *,
    scale: float,
    soft_cap: float = 0.0,
    key_tile: int | None = None,
    stages: int | None = None,
    left_out: Bool[Array, " B"] | None = None,
) -> Float[Array, "T N H"]:
    """As ``prefill_reference``, by the kernel; ``key_tile`` and ``stages`` as chosen where they are not given.

    Queries of rows that are ``left_out`` hold anything.

    Raises:
        ValueError: a call that ``reason_not_prefill`` names a reason for, or too much shared memory.
    """
    k_pages, v_pages, layer, block_table, lens, window = context
    shape = prefill_shape(q, k_pages, block_table.shape[0], scale=scale, soft_cap=soft_cap)
    if isinstance(shape, str):
        raise ValueError(f"the prefill kernel can't take this call: {shape}")
    shape = replace(shape, key_tile=key_tile or shape.key_tile, stages=stages or shape.stages)
    if reason := shape.reason_not:
        raise ValueError(f"the prefill kernel can't take this call: {reason}")
    tiles = Tiles.of(query_start, q.shape[0], left_out)
    pools = _pools(k_pages, v_pages)
    return prefill_tiles_attention(q, pools, layer, block_table, tiles, lens, window, shape)


def mixed(
    q: Float[Array, "T N H"],
    context: Context,
    query_start: Int32[Array, " S"],
    *,
    scale: float,
    soft_cap: float = 0.0,
) -> Float[Array, "T N H"]:
    """As ``prefill_reference``: rows of one query by the decode kernel, of more by the prefill kernel.

    A tile of the prefill kernel has 128 queries: a row that has one keeps tensor cores as busy as 128 would, and what reads the
    cache for a query head knows nothing of the others. Steps of an 8B model
    in which 256 answers of 1,300 tokens rode along took 52 ms (int4 cache, H200).
    """
    first = query_start[:-1]
    single = jnp.diff(query_start) == 1
    many = prefill(q, context, query_start, scale=scale, soft_cap=soft_cap, left_out=single)
    alone = context._replace(lens=jnp.where(single, context.lens, 0))
    one = decode(q.at[first].get(mode="clip"), alone, scale=scale, soft_cap=soft_cap)
    # Each row has a place of its own, those without one query beyond the end.
    places = jnp.where(single, first, q.shape[0] + jnp.arange(first.size, dtype=jnp.int32))
    return many.at[places].set(one, mode="drop", unique_indices=True)


def _pools(k_pages: Pages, v_pages: Pages) -> tuple[Array, ...]:
    if k_pages.pairs is None or v_pages.pairs is None:
        return k_pages.values, v_pages.values
    return k_pages.values, v_pages.values, k_pages.pairs, v_pages.pairs
