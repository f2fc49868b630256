"""The contract of the residual add with root-mean-square norm (arXiv:1910.07467)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32


def rms_norm(x: Float[Array, "*B D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """``x / sqrt(mean(x^2) + eps) * weight``; the mean in float32, the product in the dtype of x, as Hugging Face does."""
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * weight


def add_rms_norm_reference(
    x: Float[Array, "T D"],
    delta: Float[Array, "T D"] | None,
    weight: Float[Array, "L D"],
    layer: Int32[Array, ""],
    *,
    eps: float,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
    """``x + delta`` (x itself for None) and its norm times ``weight[layer]``, both in the dtype of x.

    The norm is that of the sum as rounded to the dtype. Compiled as one program, XLA may keep the sum in float32 on its way to the
    norm (``xla_allow_excess_precision``).
    """
    total = x if delta is None else x + delta
    return total, rms_norm(total, lax.dynamic_index_in_dim(weight, layer, 0, keepdims=False), eps)
