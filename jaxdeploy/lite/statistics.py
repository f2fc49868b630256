"""What calibration tells about the inputs of a layer's linear modules."""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.lite.block import LINEARS, Positions, Weights, block
from jaxdeploy.lite.program import programs
from jaxdeploy.pytree import Leaf


@flax.struct.dataclass
class InputStatistics:
    """Sums over calibration tokens of one linear module's inputs x [tokens, K], float32.

    Attributes:
        tokens: how many were counted.
        products: sum of x x^T, [K, K]: the Hessian of the squared error of the output (times 2), and by
            ``tr(D products D^T)`` that error itself for a change D of the weights.
        absolute: sum of abs(x), [K].
        largest: largest abs(x), [K].
    """

    tokens: Leaf
    products: Leaf
    absolute: Leaf
    largest: Leaf

    @classmethod
    def empty(cls, inputs: int) -> "InputStatistics":
        """Before any token."""
        zeros = jnp.zeros(inputs, jnp.float32)
        return cls(jnp.float32(0), jnp.zeros((inputs, inputs), jnp.float32), zeros, jnp.zeros_like(zeros))

    @property
    def mean_abs(self) -> jax.Array:
        """Mean of abs(x), [K]."""
        return self.absolute / jnp.maximum(self.tokens, 1)

    @property
    def hessian(self) -> jax.Array:
        """Mean of x x^T, [K, K]."""
        return self.products / jnp.maximum(self.tokens, 1)

    def add(self, x: jax.Array) -> "InputStatistics":
        """Count x [..., K] in."""
        rows = x.reshape(-1, x.shape[-1])
        precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        products = lax.dot_general(
            rows, rows, (((0,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
        )
        size = jnp.abs(rows.astype(jnp.float32))
        return InputStatistics(
            self.tokens + rows.shape[0],
            self.products + products,
            self.absolute + size.sum(axis=0),
            jnp.maximum(self.largest, size.max(axis=0)),
        )

    def divided(self, scales: jax.Array) -> "InputStatistics":
        """Of the inputs divided channel by channel by ``scales`` [K]."""
        products = self.products / (scales[:, None] * scales[None])
        return InputStatistics(self.tokens, products, self.absolute / scales, self.largest / scales)


LayerStatistics = dict[str, InputStatistics]
"""By linear module."""


@programs(static_argnums=(0,))
def no_statistics(inputs: tuple[tuple[str, int], ...]) -> LayerStatistics:
    """Before any token, for linear modules with so many inputs."""
    return {linear: InputStatistics.empty(size) for linear, size in inputs}


@programs(static_argnums=(0,), donate_argnums=(4,))
def count_chunk(
    config: ModelConfig, weights: Weights, x: jax.Array, places: Positions, statistics: LayerStatistics
) -> LayerStatistics:
    """``statistics`` (donated) with the tokens of x [B, T, D] run through the layer."""
    _, inputs = block(config, weights, x, places)
    return {linear: statistics[linear].add(inputs[linear]) for linear in LINEARS}
