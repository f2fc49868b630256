"""The contract of ``int4_matmul``: unpack, de-quantize, multiply. XLA may fuse the first two into the third."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8


def unpack_int4(packed: UInt8[Array, "... Kh"]) -> UInt8[Array, "... K"]:
    """Nibbles to bytes: low nibble first.

    Returns:
        Values 0..15 of shape [..., K].
    """
    pairs = jnp.stack([packed & 0xF, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def dequantize(
    packed: UInt8[Array, "N Kh"],
    scale: Float[Array, "Kg N"],
    zero: UInt8[Array, "Kg N"],
    *,
    group_size: int,
) -> Float[Array, "N K"]:
    """``w[n, k] = (q[n, k] - zero[k // G, n]) * scale[k // G, n]``, in float32 (formats: AWQ gemm, GPTQ)."""
    q = unpack_int4(packed)
    n, k = q.shape
    grouped = q.reshape(n, k // group_size, group_size).astype(jnp.float32)
    w = (grouped - zero.T[..., None].astype(jnp.float32)) * scale.T[..., None].astype(jnp.float32)
    return w.reshape(n, k)


def int4_matmul_reference(
    x: Float[Array, "M K"],
    packed: UInt8[Array, "N Kh"],
    scale: Float[Array, "Kg N"],
    zero: UInt8[Array, "Kg N"],
    *,
    group_size: int,
) -> Float[Array, "M N"]:
    """``x @ w.T`` with w de-quantized and rounded to the dtype of x; accumulates in float32."""
    w = dequantize(packed, scale, zero, group_size=group_size).astype(x.dtype)
    out = lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return out.astype(x.dtype)
