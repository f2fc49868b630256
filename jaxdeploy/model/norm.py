"""Root-mean-square norm (arXiv:1910.07467), by itself and with the residual add before it."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from jaxdeploy.model.parameter import Source, described
from pallas_kernels.rms_norm.api import add_rms_norm
from pallas_kernels.rms_norm.reference import rms_norm

__all__ = ["RMSNorm", "rms_norm"]


class Unnormed(NamedTuple):
    """What a matmul is fed once it is added up and normalized, by one kernel with it or one before.

    Attributes:
        x: the residual stream. delta: what is to be added to it.
        gain: of all layers. eps: see ``rms_norm``.
    """

    x: Float[Array, "T D"]
    delta: Float[Array, "T D"]
    gain: Float[Array, "L D"]
    eps: float


class RMSNorm(nn.Module):
    """One norm, or (``layers`` set) the same norm of every layer, stacked [L, D]."""

    module: str
    size: int
    eps: float
    dtype: str
    layers: int | None = None

    def setup(self):
        """Declare the weight."""
        stacked = self.layers is not None
        source = Source((self.module,), "weight", ("layer", "norm") if stacked else ("norm",), stacked)
        shape = (self.layers, self.size) if stacked else (self.size,)
        self.weight: Any = self.param("weight", described(nn.initializers.ones, source), shape, jnp.dtype(self.dtype))

    def __call__(self, x: Float[Array, "*B D"], layer: Int32[Array, ""] | None = None) -> Float[Array, "*B D"]:
        """Normalize the last axis, with one layer's weight if there are several."""
        weight = self.weight
        if layer is not None:
            weight = lax.dynamic_index_in_dim(weight, layer, 0, keepdims=False)
        return rms_norm(x, weight, self.eps)

    def after_add(
        self, x: Float[Array, "T D"], delta: Float[Array, "T D"]
    ) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
        """``x + delta`` and its norm, of a single norm: one kernel in a decode step on a GPU."""
        return add_rms_norm(x, delta, self.weight[None], 0, eps=self.eps)

    def put_off(self, x: Float[Array, "T D"], delta: Float[Array, "T D"]) -> Unnormed:
        """``x + delta`` and its norm, of a stack of norms: left to the matmul that they are for."""
        return Unnormed(x, delta, self.weight, self.eps)
