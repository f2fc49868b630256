"""Root-mean-square norm (arXiv:1910.07467)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from jaxdeploy.model.parameter import Source, described


def rms_norm(x: Float[Array, "*B D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """``x / sqrt(mean(x^2) + eps) * weight``; the mean in float32, the product in the dtype of x, as Hugging Face does."""
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * weight


class RMSNorm(nn.Module):
    """One norm, or (``layers`` set) the same norm of every layer, stacked [L, D]."""

    module: str
    size: int
    eps: float
    dtype: str
    layers: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"], layer: Int32[Array, ""] | None = None) -> Float[Array, "*B D"]:
        """Normalize the last axis, with one layer's weight if there are several."""
        stacked = self.layers is not None
        source = Source((self.module,), "weight", ("layer", "norm") if stacked else ("norm",), stacked)
        shape = (self.layers, self.size) if stacked else (self.size,)
        weight: Any = self.param("weight", described(nn.initializers.ones, source), shape, jnp.dtype(self.dtype))
        if stacked:
            weight = lax.dynamic_index_in_dim(weight, layer, 0, keepdims=False)
        return rms_norm(x, weight, self.eps)
