"""A dense matrix of 8-bit integers with one scale for each output, which XLA multiplies as it reads it."""

import flax.struct
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdeploy.pytree import Leaf


@flax.struct.dataclass
class Int8Matrix:
    """``values * scale`` by outputs.

    Attributes:
        values: int8 [N, D].
        scale: float32 [N].
    """

    values: Leaf
    scale: Leaf

    @classmethod
    def of(cls, matrix: Float[Array, "N D"]) -> "Int8Matrix":
        """Rounded to the nearest; each row's largest magnitude is 127 steps, a row of zeros stays one."""
        wide = matrix.astype(jnp.float32)
        largest = jnp.max(jnp.abs(wide), axis=1)
        scale = jnp.where(largest == 0.0, 1.0, largest / 127.0)
        return cls(jnp.round(wide / scale[:, None]).astype(jnp.int8), scale)

    def product(self, x: Float[Array, "*B D"]) -> Float[Array, "*B N"]:
        """``x @ matrix.T``, float32. Every int8 is a bfloat16, so only the rounding of the matrix is lost."""
        contract = (((x.ndim - 1,), (1,)), ((), ()))
        out = lax.dot_general(x, self.values.astype(x.dtype), contract, preferred_element_type=jnp.float32)
        return out * self.scale
