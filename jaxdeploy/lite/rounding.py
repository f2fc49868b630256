"""The int4 quantizer: ranges of groups, scales and zero points, round-to-nearest.

Shapes: w [N, K]; group g of a row is K/G inputs side by side, so grouped arrays are [N, Gn, G] and scales [N, Gn].
Formula (formats of AWQ and GPTQ): ``scale = (max - min) / 15``, ``zero = -round(min / scale)``, ``q = round(w / scale) + zero``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGEST = 15.0  # of int4


class Grid(NamedTuple):
    """The 16 values that each group's weights may take: ``(q - zero) * scale``. Both [N, Gn], float32."""

    scale: jax.Array
    zero: jax.Array


def grouped(w: Float[Array, "N K"], group_size: int) -> Float[Array, "N Gn G"]:
    """Rows cut into groups."""
    return w.reshape(w.shape[0], -1, group_size)


def group_range(w: Float[Array, "N K"], group_size: int) -> tuple[Float[Array, "N Gn"], Float[Array, "N Gn"]]:
    """(low, high) of each group, widened to contain 0: else a group of one sign would not fit the zero point's range."""
    groups = grouped(w, group_size)
    return jnp.minimum(groups.min(axis=-1), 0.0), jnp.maximum(groups.max(axis=-1), 0.0)


def fit_scale(low: Float[Array, "N Gn"], high: Float[Array, "N Gn"], scale_dtype: str) -> Float[Array, "N Gn"]:
    """float32 scales that ``scale_dtype`` holds exactly and that are never 0 (a group of zeros gets 1)."""
    scale = (high - low) / LARGEST
    info = jnp.finfo(scale_dtype)
    smallest = info.smallest_subnormal if info.bits == 16 and info.nmant == 10 else info.tiny
    rounded = jnp.maximum(scale, float(smallest)).astype(scale_dtype).astype(jnp.float32)
    return jnp.where(scale > 0, rounded, 1.0)


def fit_grid(low: Float[Array, "N Gn"], high: Float[Array, "N Gn"], scale_dtype: str, lowest_zero: int = 0) -> Grid:
    """The grid from low to high.

    Args:
        scale_dtype: in which the checkpoint stores scales: weights are rounded with the scale as it will be read.
        lowest_zero: smallest zero point that the checkpoint's format can hold.
    """
    scale = fit_scale(low, high, scale_dtype)
    return Grid(scale, jnp.clip(-jnp.round(low / scale), lowest_zero, LARGEST))


def min_max_grid(w: Float[Array, "N K"], group_size: int, scale_dtype: str, lowest_zero: int = 0) -> Grid:
    """The grid that spans each group."""
    return fit_grid(*group_range(w, group_size), scale_dtype, lowest_zero)


def round_nearest(w: Float[Array, "N K"], grid: Grid) -> Float[Array, "N K"]:
    """q, 0..15, as float32."""
    groups = grouped(w, w.shape[1] // grid.scale.shape[1])
    q = jnp.clip(jnp.round(groups / grid.scale[..., None]) + grid.zero[..., None], 0.0, LARGEST)
    return q.reshape(w.shape)


def dequantize(q: Float[Array, "N K"], grid: Grid) -> Float[Array, "N K"]:
    """``(q - zero) * scale``, float32."""
    groups = grouped(q, q.shape[1] // grid.scale.shape[1])
    return ((groups - grid.zero[..., None]) * grid.scale[..., None]).reshape(q.shape)


def nearest(w: Float[Array, "N K"], group_size: int, scale_dtype: str) -> Float[Array, "N K"]:
    """w rounded to its min-max grid: what a search tries."""
    grid = min_max_grid(w, group_size, scale_dtype)
    return dequantize(round_nearest(w, grid), grid)
