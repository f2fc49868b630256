"""The contract of the KV write: RoPE, per-token and per-head asymmetric quantization, then a scatter into pages."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float16, Int32, Num, UInt8


class Pools(NamedTuple):
    """Pages of keys and of values and, for 8 and 4 bits, their (scale, offset) pairs."""

    k: Num[Array, "L P K page Hs"]
    v: Num[Array, "L P K page Hs"]
    k_pairs: Float[Array, "L P K page 2"] | None = None
    v_pairs: Float[Array, "L P K page 2"] | None = None


def apply_rotation(
    x: Float[Array, "T N H"], cos: Float[Array, "T F"], sin: Float[Array, "T F"]
) -> Float[Array, "T N H"]:
    """Turns each pair (x[i], x[i + H/2]) by its angle, in float32; the result has x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def quantize_heads(x: Float[Array, "T K H"], *, bits: int) -> tuple[UInt8[Array, "T K Hs"], Float16[Array, "T K 2"]]:
    """Quantize each head of each token over its H values.

    ``scale = (max - min) / (2^bits - 1)``, ``offset = min``, ``q = round((x - offset) / scale)`` (LMDeploy's online KV
    quantization). The pair is float16 and q is computed from it as stored: the offset is rounded down and the scale, taken from
    that offset, up. So no value lies outside of what q can say and the error is at most half a (stored) scale, also where the
    scale of a head of small values is subnormal. A head whose values all equal one float16 has scale 0 and is restored exactly.

    With 4 bits q stays as it is, and the pair becomes the line through the values over q with the least squares, wherever that
    leaves a smaller squared error (in float16) than the range did. A step is wide there, and its rounding errors add up to a
    constant that the range's ends know nothing of. The reader sees no difference.

    Args:
        x: keys (after RoPE) or values.
        bits: 8 (Hs = H) or 4 (Hs = H/2, value 2j in the low nibble of byte j).

    Returns:
        The integers and the (scale, offset) pairs.
    """
    x = x.astype(jnp.float32)
    top = float(2**bits - 1)
    low, high = jnp.min(x, axis=-1, keepdims=True), jnp.max(x, axis=-1, keepdims=True)
    offset = _round_half(low, -jnp.inf)
    scale = _round_half((high - offset.astype(jnp.float32)) / top, jnp.inf)
    pair = jnp.concatenate([scale, offset], axis=-1)
    scale, offset = scale.astype(jnp.float32), offset.astype(jnp.float32)
    q = jnp.clip(jnp.round((x - offset) / jnp.where(scale == 0, 1.0, scale)), 0, top).astype(jnp.uint8)
    if bits == 4:
        pair = _least_squares(x, q, pair)
        q = q[..., 0::2] | (q[..., 1::2] << 4)
    return q, pair


def _least_squares(x: Float[Array, "T K H"], q: UInt8[Array, "T K H"], pair: Float16[Array, "T K 2"]):
    """(scale, offset) of least squared error, or ``pair`` where it is no better."""
    levels = q.astype(jnp.float32)
    level, value = jnp.mean(levels, axis=-1, keepdims=True), jnp.mean(x, axis=-1, keepdims=True)
    spread = jnp.sum(jnp.square(levels - level), axis=-1, keepdims=True)
    slope = jnp.sum((levels - level) * (x - value), axis=-1, keepdims=True) / jnp.where(spread > 0, spread, 1.0)
    scale = _clip_half(slope).astype(jnp.float16)
    offset = _clip_half(value - scale.astype(jnp.float32) * level).astype(jnp.float16)
    fitted = jnp.concatenate([scale, offset], axis=-1)

    def error(pair):
        restored = levels * pair[..., :1].astype(jnp.float32) + pair[..., 1:].astype(jnp.float32)
        return jnp.sum(jnp.square(restored - x), axis=-1, keepdims=True)

    # An infinite or overflowing value gives no number here, and the comparison is false.
    return jnp.where(error(fitted) < error(pair), fitted, pair)


def _round_half(x: Float[Array, "*B"], towards: float) -> Float16[Array, "*B"]:
    """To the next float16 in the direction of ``towards``, an infinity; beyond float16's range to its largest value."""
    x = _clip_half(x)
    nearest = x.astype(jnp.float16)
    back = nearest.astype(jnp.float32)
    overshot = back > x if towards < 0 else back < x
    return jnp.where(overshot, jnp.nextafter(nearest, jnp.float16(towards)), nearest)


def _clip_half(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    limit = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(x, -limit, limit)


def dequantize_heads(
    q: UInt8[Array, "*batch Hs"], pair: Float16[Array, "*batch 2"], *, bits: int
) -> Float[Array, "*batch H"]:
    """``q * scale + offset`` in float32, the inverse of ``quantize_heads`` but for rounding."""
    if bits == 4:
        q = jnp.stack([q & 0xF, q >> 4], axis=-1).reshape(*q.shape[:-1], 2 * q.shape[-1])
    pair = pair.astype(jnp.float32)
    return q.astype(jnp.float32) * pair[..., 0:1] + pair[..., 1:2]


def scatter_reference(
    pages: Num[Array, "L P K page Hs"],
    new: Num[Array, "T K Hs"],
    layer: Int32[Array, ""],
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
) -> Num[Array, "L P K page Hs"]:
    """Put row t at ``pages[layer, page_ids[t], :, offsets[t]]``; rows whose page id is P (padding) are dropped."""
    layers = lax.broadcast(layer, page_ids.shape)
    return pages.at[layers, page_ids, :, offsets].set(new.astype(pages.dtype), mode="drop")


def rope_qkv(
    qkv: Float[Array, "T M H"], cos: Float[Array, "T F"], sin: Float[Array, "T F"], kv_heads: int
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
    """Queries and keys after RoPE, and values; the last ``kv_heads`` of the M heads are values, those before them keys."""
    heads = qkv.shape[1] - 2 * kv_heads
    q, k, v = jnp.split(qkv, (heads, heads + kv_heads), axis=1)
    return apply_rotation(q, cos, sin), apply_rotation(k, cos, sin), v


def kv_write_reference(
    pools: Pools,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    layer: Int32[Array, ""],
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
    *,
    bits: int,
) -> Pools:
    """Quantize and store keys and values as they are."""

    def write(pages, pairs, new):
        if bits == 16:
            return scatter_reference(pages, new, layer, page_ids, offsets), None
        q, pair = quantize_heads(new, bits=bits)
        stored = scatter_reference(pages, q, layer, page_ids, offsets)
        return stored, scatter_reference(pairs, pair, layer, page_ids, offsets)

    (new_k, k_pairs), (new_v, v_pairs) = write(pools.k, pools.k_pairs, k), write(pools.v, pools.v_pairs, v)
    return Pools(new_k, new_v, k_pairs, v_pairs)


def rope_kv_write_reference(
    pools: Pools,
    qkv: Float[Array, "T M H"],
    cos: Float[Array, "T F"],
    sin: Float[Array, "T F"],
    layer: Int32[Array, ""],
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
    *,
    bits: int,
) -> tuple[Float[Array, "T N H"], Pools]:
    """Turn queries and keys, then ``kv_write_reference``; returns the queries and the pools."""
    q, k, v = rope_qkv(qkv, cos, sin, pools.k.shape[2])
    return q, kv_write_reference(pools, k, v, layer, page_ids, offsets, bits=bits)
