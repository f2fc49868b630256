"""Paged attention on Hopper: which calls its kernels take, and the calls."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.paged_attention import decode_mosaic
from pallas_kernels.paged_attention.decode_mosaic import DecodeConfig, Shape
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.merge_mosaic import merge_partials
from pallas_kernels.paged_attention.reference import Pages

_SHORT = {"bfloat16": "bf16", "float16": "f16"}


def decode_shape(
    q: Float[Array, "B N H"], k_pages: Pages, table_width: int, *, scale: float, soft_cap: float
) -> Shape | str:
    """The sizes of a call, or why its types are not the kernel's."""
    dtypes = {str(q.dtype), str(k_pages.values.dtype) if k_pages.bits == 16 else str(q.dtype)}
    if not dtypes <= set(_SHORT) or len(dtypes) > 1:
        return f"queries of {q.dtype} and pages of {k_pages.values.dtype} must both be bfloat16 or both float16"
    _, pages, kv_heads, page_size, _ = k_pages.values.shape
    name = _SHORT[str(q.dtype)]
    return Shape(
        batch=q.shape[0], heads=q.shape[1], kv_heads=kv_heads, pages=pages, page_size=page_size, table_width=table_width,
        stored=Stored(q.shape[2], k_pages.bits, name), query_dtype=name, scale=scale, soft_cap=soft_cap,
    )  # fmt: skip


def reason_not_decode(
    q: Float[Array, "B N H"], k_pages: Pages, table_width: int, config: DecodeConfig | None = None
) -> str | None:
    """Why the decode kernel can't take a call; None if it can."""
    shape = decode_shape(q, k_pages, table_width, scale=1.0, soft_cap=0.0)
    if isinstance(shape, str):
        return shape
    return decode_mosaic.reason_not(shape, config or decode_mosaic.default_config(shape))


def decode(
    q: Float[Array, "B N H"],
    k_pages: Pages,
    v_pages: Pages,
    layer: Int32[Array, ""],
    block_table: Int32[Array, "B W"],
    context_lens: Int32[Array, " B"],
    window: Int32[Array, ""],
    *,
    scale: float,
    soft_cap: float = 0.0,
    config: DecodeConfig | None = None,
) -> Float[Array, "B N H"]:
    """As ``decode_reference``, by the kernels.

    Raises:
        ValueError: a call that ``reason_not_decode`` names a reason for.
    """
    shape = decode_shape(q, k_pages, block_table.shape[1], scale=scale, soft_cap=soft_cap)
    if isinstance(shape, str):
        raise ValueError(f"the decode kernel can't take this call: {shape}")
    config = config or decode_mosaic.default_config(shape)
    if reason := decode_mosaic.reason_not(shape, config):
        raise ValueError(f"the decode kernel can't take this call: {reason}")
    pools = (k_pages.values, v_pages.values)
    if k_pages.pairs is not None and v_pages.pairs is not None:
        pools = (*pools, k_pages.pairs, v_pages.pairs)
    window = window.reshape(1)
    partials, stats, split = decode_mosaic.decode_partials(
        q, pools, layer.reshape(1), block_table, context_lens, window, shape, config
    )
    return merge_partials(partials, stats, context_lens, window, split, str(jnp.dtype(q.dtype)))
