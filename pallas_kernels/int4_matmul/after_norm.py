"""The int4 matmul with the residual add and the norm before it: for a token or two one kernel, else one after the other."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pallas_kernels.device import gpu_capability
from pallas_kernels.int4_matmul.api import int4_matmul_tiles
from pallas_kernels.int4_matmul.tiles import BLOCK, groups_per_tile, padded
from pallas_kernels.rms_norm import mosaic
from pallas_kernels.rms_norm.api import add_rms_norm

MOST_TOKENS = 2
"""That one kernel takes: each of its blocks makes all of them anew."""


def norm_int4_matmul_tiles(
    x: Float[Array, "M K"],
    delta: Float[Array, "M K"],
    gain: Float[Array, "L K"],
    words: Int32[Array, "L Ns Kb 256"],
    meta: Int32[Array, "L Ns Kb Gt 16"],
    layer: Int32[Array, ""] | int,
    *,
    eps: float,
    outputs: int,
    group_size: int,
    gated: bool = False,
) -> tuple[Float[Array, "M K"], Float[Array, "M N"]]:
    """``add_rms_norm``, then ``int4_matmul_tiles``; what is rounded is the same in one kernel as in two.

    Args:
        x: the residual stream. delta: what is to be added to it.
        gain: the norm's weight, of all layers.
        eps: added to the mean of squares.
        words, meta, layer, outputs, group_size, gated: see ``int4_matmul_tiles``.

    Returns:
        ``x + delta``, and the product.

    Raises:
        ValueError: shapes that don't fit each other.
    """
    layer = jnp.asarray(layer, jnp.int32)

    def apart(x, delta, gain, words, meta, layer):
        total, normed = add_rms_norm(x, delta, gain, layer, eps=eps)
        product = int4_matmul_tiles(normed, words, meta, layer, outputs=outputs, group_size=group_size, gated=gated)
        return total, product

    arrays = x, delta, gain, words, meta, layer
    config = _config(x, delta, gain, outputs, group_size) if x.shape[0] <= MOST_TOKENS else None
    if config is None:
        return apart(*arrays)
    from pallas_kernels.int4_matmul.mosaic_warp import norm_int4_matmul_warp

    def together(x, delta, gain, words, meta, layer):
        run = partial(norm_int4_matmul_warp, eps=eps, outputs=outputs, config=config, gated=gated)
        return run(x, delta, gain, words, meta, layer.reshape(1))

    return lax.platform_dependent(*arrays, cuda=together, default=apart)


def _config(x: jax.Array, delta: jax.Array, gain: jax.Array, outputs: int, group_size: int):
    """How one kernel is cut; None if it can't take the call or another than the warp kernel is faster."""
    from pallas_kernels.int4_matmul import choice
    from pallas_kernels.int4_matmul.warp_cut import MAX_SHARED, WarpConfig

    tokens, inputs = x.shape
    if inputs % BLOCK or mosaic.reason_not(x, delta, gain):
        return None
    shape = choice.Shape(tokens, inputs, outputs, group_size)
    config = choice.choose(shape, capability=gpu_capability())
    if not isinstance(config, WarpConfig):
        return None
    _, rounds = config.grid(padded(outputs, inputs)[0] // 16)
    fits = config.shared_bytes(tokens, groups_per_tile(group_size), rounds, inputs) <= MAX_SHARED
    return config if fits and mosaic.Row(inputs, config.warps * 32).fits else None
