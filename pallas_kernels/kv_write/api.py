"""Shapes, errors and the choice of implementation of the KV write."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.implementation import run_implementation
from pallas_kernels.kv_write import mosaic
from pallas_kernels.kv_write.reference import Pools, kv_write_reference, rope_kv_write_reference

BITS = (16, 8, 4)


def _check(pools: Pools, head_dim: int, bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"{bits=} must be one of {BITS}")
    if pools.k.shape != pools.v.shape:
        raise ValueError(f"K and V pools differ: {pools.k.shape} and {pools.v.shape}")
    stored = head_dim * min(bits, 8) // 8
    if pools.k.shape[-1] != stored:
        raise ValueError(
            f"head_dim {head_dim} at {bits=} takes {stored} values a head, the pool has {pools.k.shape[-1]}"
        )
    if bits != 16 and (pools.k_pairs is None or pools.v_pairs is None):
        raise ValueError(f"{bits=} needs the pools of (scale, offset) pairs")
    if bits == 16 and (pools.k_pairs is not None or pools.v_pairs is not None):
        raise ValueError(f"{bits=} stores no (scale, offset) pairs; leave their pools out")


def kv_write(
    pools: Pools,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    layer: Int32[Array, ""] | int,
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
    *,
    bits: int,
    implementation: str | None = None,
) -> Pools:
    """Quantize (``bits`` 8 or 4) and store the keys and values of T new tokens.

    Args:
        pools: donate them, the write is in place then.
        k: keys after RoPE and whatever else the cache stores them with.
        v: values.
        layer: which layer's pages.
        page_ids: page of each token; P drops the row (padding).
        offsets: place of each token in its page.
        bits: 16 stores in the pools' dtype.
        implementation: name one of IMPLEMENTATIONS to fail if it can't; None takes the first that can.

    Raises:
        ValueError: an unknown ``bits``, pools that don't hold H values of that width or lack pairs; an unknown implementation or
            one that can't take the call.
    """
    _check(pools, k.shape[-1], bits)
    if k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(f"new keys and values differ: {k.dtype}{k.shape} and {v.dtype}{v.shape}")
    if k.shape[1] != pools.k.shape[2]:
        raise ValueError(f"{k.shape[1]} new KV heads for pools of {pools.k.shape[2]}")
    return run_implementation(
        implementation, mosaic.reason_not(pools, k, bits, turned=False),
        partial(mosaic.kv_write, bits=bits), partial(kv_write_reference, bits=bits),
        pools, k, v, jnp.asarray(layer, jnp.int32), page_ids, offsets,
    )  # fmt: skip


def rope_kv_write(
    pools: Pools,
    qkv: Float[Array, "T M H"],
    cos: Float[Array, "T F"],
    sin: Float[Array, "T F"],
    layer: Int32[Array, ""] | int,
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
    *,
    bits: int,
    implementation: str | None = None,
) -> tuple[Float[Array, "T N H"], Pools]:
    """RoPE, then ``kv_write``: one kernel from the product of q, k and v to the queries that attention takes.

    Args:
        qkv: M = N + 2K heads of each token: queries, keys, values, where K is the pools'.
        cos, sin: float32, the angle of each pair (i, i + H/2), F = H/2.
        pools, layer, page_ids, offsets, bits, implementation: as in ``kv_write``.

    Returns:
        The queries after RoPE in the dtype of ``qkv``, and the pools.

    Raises:
        ValueError: as ``kv_write``, and heads that leave no queries.
    """
    _check(pools, qkv.shape[-1], bits)
    if qkv.shape[1] <= 2 * pools.k.shape[2]:
        raise ValueError(
            f"{qkv.shape[1]} heads of q, k and v leave no queries beside pools of {pools.k.shape[2]} KV heads"
        )
    if 2 * cos.shape[-1] != qkv.shape[-1] or cos.dtype != jnp.float32:
        raise ValueError(f"cos and sin of {cos.dtype}{cos.shape} must be float32 of half of head_dim {qkv.shape[-1]}")
    return run_implementation(
        implementation, mosaic.reason_not(pools, qkv, bits, turned=True),
        partial(mosaic.rope_kv_write, bits=bits), partial(rope_kv_write_reference, bits=bits),
        pools, qkv, cos, sin, jnp.asarray(layer, jnp.int32), page_ids, offsets,
    )  # fmt: skip
