"""Range of each group: the one whose rounded weights give the least error of the group's output (llm-awq's clip search)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdeploy.lite.program import programs
from jaxdeploy.lite.rounding import dequantize, fit_grid, group_range, grouped, round_nearest

RATIOS = 20
SMALLEST = 0.5
"""The range is shrunk to no less than this share, in RATIOS steps."""


def group_products(products: Float[Array, "K K"], group_size: int) -> Float[Array, "Gn G G"]:
    """The diagonal blocks of x x^T: what the error of one group's own output needs."""
    count = products.shape[0] // group_size
    blocks = products.reshape(count, group_size, count, group_size)
    return jnp.moveaxis(jnp.diagonal(blocks, axis1=0, axis2=2), -1, 0)


@programs(static_argnums=(2, 3, 4))
def search_ranges(
    w: Float[Array, "N K"],
    products: Float[Array, "K K"],
    group_size: int,
    scale_dtype: str,
    lowest_zero: int = 0,
) -> Float[Array, "N Gn"]:
    """Share of its min-max range that each group should span, SMALLEST to 1.

    Args:
        products: sum or mean of x x^T over calibration tokens.
    """
    low, high = group_range(w, group_size)
    blocks = group_products(products, group_size)

    def error(ratio):
        grid = fit_grid(low * ratio, high * ratio, scale_dtype, lowest_zero)
        change = grouped(dequantize(round_nearest(w, grid), grid) - w, group_size)
        return jnp.einsum("ngi,gij,ngj->ng", change, blocks, change, precision=lax.Precision.HIGHEST)

    def step(index, best):
        ratio = 1 - (1 - SMALLEST) * index / RATIOS
        found = error(ratio)
        better = found < best[0]
        return jnp.where(better, found, best[0]), jnp.where(better, ratio, best[1])

    _, ratios = lax.fori_loop(1, RATIOS + 1, step, (error(jnp.float32(1)), jnp.ones_like(low)))
    return ratios
