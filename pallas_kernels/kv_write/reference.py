"""The contract of the KV write: per-token, per-head asymmetric quantization, then a scatter into pages."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float16, Int32, Num, UInt8


def quantize_heads(x: Float[Array, "T K H"], *, bits: int) -> tuple[UInt8[Array, "T K Hs"], Float16[Array, "T K 2"]]:
    """Quantize each head of each token over its H values.

    ``scale = (max - min) / (2^bits - 1)``, ``offset = min``, ``q = round((x - offset) / scale)`` (LMDeploy's online KV
    quantization). The pair is rounded to float16 first and q is computed from the rounded pair, so that the error is only q's own.
    A head whose values are all equal has scale 0 and is restored exactly from its offset.

    Args:
        x: keys (after RoPE) or values.
        bits: 8 (Hs = H) or 4 (Hs = H/2, value 2j in the low nibble of byte j).

    Returns:
        The integers and the (scale, offset) pairs.
    """
    x = x.astype(jnp.float32)
    low, high = jnp.min(x, axis=-1), jnp.max(x, axis=-1)
    top = float(2**bits - 1)
    limit = float(jnp.finfo(jnp.float16).max)
    pair = jnp.clip(jnp.stack([(high - low) / top, low], axis=-1), -limit, limit).astype(jnp.float16)
    scale, offset = pair[..., 0:1].astype(jnp.float32), pair[..., 1:2].astype(jnp.float32)
    q = jnp.clip(jnp.round((x - offset) / jnp.where(scale == 0, 1.0, scale)), 0, top).astype(jnp.uint8)
    if bits == 4:
        q = q[..., 0::2] | (q[..., 1::2] << 4)
    return q, pair


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
