"""The packed int4 weight: a leaf of the parameter tree, wherever a dense matrix could stand."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdeploy.pytree import Leaf


@flax.struct.dataclass
class QuantTensor:
    """An int4 weight matrix ``w[n, k] = (q[n, k] - zero[k // G, n]) * scale[k // G, n]``, stored packed.

    A stack of L layers adds a leading axis to every array. The layout is the one that a row-major ``[N, K]`` int4 array has
    in memory, so that a bitcast (not a shuffle) turns ``packed`` into int4.

    Attributes:
        packed: q in 0..15; byte j of row n holds ``q[n, 2j]`` in its low and ``q[n, 2j + 1]`` in its high nibble.
        scale: one per (group of G inputs, output), float16, bfloat16 or float32.
        zero: zero points 0..15, one per scale.
        perm: column order of an act-order (``desc_act``) checkpoint: stored column j is input ``perm[j]``; None if in order.
        group_size: G, inputs that share a scale.
    """

    packed: Leaf  # uint8 [*L, N, K/2]
    scale: Leaf  # float [*L, K/G, N]
    zero: Leaf  # uint8 [*L, K/G, N]
    perm: Leaf | None = None  # int32 [*L, K]
    group_size: int = flax.struct.field(pytree_node=False, default=128)

    @property
    def in_features(self) -> int:
        """K, the number of inputs."""
        return 2 * self.packed.shape[-1]

    @property
    def out_features(self) -> int:
        """N, the number of outputs."""
        return self.packed.shape[-2]

    def dequantize(self) -> Float[Array, "*L N K"]:
        """The dense matrix in the dtype of ``scale``, columns in the order of the inputs. For tests and small tools."""
        q = jnp.stack([self.packed & 0xF, self.packed >> 4], axis=-1).reshape(*self.packed.shape[:-1], self.in_features)
        zero = jnp.repeat(jnp.swapaxes(self.zero, -1, -2), self.group_size, axis=-1)
        scale = jnp.repeat(jnp.swapaxes(self.scale, -1, -2), self.group_size, axis=-1)
        w = (q.astype(scale.dtype) - zero.astype(scale.dtype)) * scale
        if self.perm is None:
            return w
        inverse = jnp.argsort(self.perm, axis=-1)
        return jnp.take_along_axis(w, jnp.broadcast_to(inverse[..., None, :], w.shape), axis=-1)
