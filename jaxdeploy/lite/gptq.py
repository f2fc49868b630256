"""GPTQ (arXiv:2210.17323): columns are rounded one by one, and those still to come make up for the error."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdeploy.lite.rounding import LARGEST, Grid, min_max_grid

_WIDEST_BLOCK = 128  # columns whose error is passed on together
_TRIES = 6


def inverse_factor(hessian: Float[Array, "K K"], damping: float) -> Float[Array, "K K"]:
    """Upper triangular U with ``U^T U = (hessian + damping * mean diagonal)^-1``.

    A channel that is always 0 gets a diagonal of 1 and is simply rounded. The damping grows tenfold while the factorization
    fails, which a Hessian of few tokens can make it.
    """
    diagonal = jnp.diagonal(hessian)
    mean = jnp.mean(diagonal)
    dead = diagonal <= 0
    base = hessian + jnp.diag(jnp.where(dead, jnp.maximum(mean, 1.0), 0.0))
    for attempt in range(_TRIES):
        factor = _factor(base, jnp.maximum(damping * 10.0**attempt * mean, 1e-8))
        if bool(jnp.isfinite(factor).all()):
            return factor
    # No structure left to trust: independent columns, which is rounding to nearest.
    return jnp.eye(hessian.shape[0], dtype=jnp.float32)


@jax.jit
def _factor(hessian: jax.Array, added: jax.Array) -> jax.Array:
    damped = hessian + added * jnp.eye(hessian.shape[0], dtype=jnp.float32)
    # R R^T = damped with R upper comes from the Cholesky factor of the matrix turned upside down; then U is R's inverse.
    upper = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    identity = jnp.eye(hessian.shape[0], dtype=jnp.float32)
    return jax.scipy.linalg.solve_triangular(upper, identity, lower=False)


def gptq_round(
    w: Float[Array, "N K"],
    hessian: Float[Array, "K K"],
    *,
    group_size: int,
    scale_dtype: str,
    lowest_zero: int = 0,
    damping: float = 0.01,
    grid: Grid | None = None,
    order: Int[Array, " K"] | None = None,
) -> tuple[Float[Array, "N K"], Grid]:
    """Round a matrix.

    Args:
        w: float32.
        hessian: mean of x x^T over calibration tokens.
        grid: of every group, in the order of the inputs; None fits each group's when its turn comes, to the weights that the
            columns before have changed.
        order: columns in the order in which they are rounded; None from left to right. Without ``grid``, groups are made of
            columns that follow each other in this order.

    Returns:
        q [N, K] and its grid. Columns are in the order of the inputs, but in ``order`` if that was given without ``grid``.
    """
    inputs = w.shape[1]
    groups = jnp.arange(inputs) // group_size
    if order is not None:
        w, hessian = w[:, order], hessian[order][:, order]
        groups = groups[order] if grid is not None else groups
    factor = inverse_factor(hessian, damping)
    if grid is None:
        if group_size > 2 * _WIDEST_BLOCK:
            # One wide group: fitted to the weights as they came, for its columns are not updated all at once.
            grid = min_max_grid(w, group_size, scale_dtype, lowest_zero)
            q, _ = _sweep(w, factor, _spread(grid, groups), _block_of(inputs), None, 0)
            return q, grid
        q, fitted = _sweep(w, factor, None, group_size, scale_dtype, lowest_zero)
        return q, fitted
    q, _ = _sweep(w, factor, _spread(grid, groups), _block_of(inputs), None, 0)
    if order is not None:
        q = jnp.zeros_like(q).at[:, order].set(q)
    return q, grid


def _spread(grid: Grid, groups: jax.Array) -> Grid:
    """One column of scales and zeros per column of weights."""
    return Grid(grid.scale[:, groups], grid.zero[:, groups])


def _block_of(inputs: int) -> int:
    return next(size for size in range(min(_WIDEST_BLOCK, inputs), 0, -1) if inputs % size == 0)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _sweep(
    w: jax.Array, factor: jax.Array, columns: Grid | None, size: int, scale_dtype: str | None, lowest_zero: int
) -> tuple[jax.Array, Any]:
    """Round all columns, ``size`` at a time. ``columns`` None: a block is a group, whose grid is fitted at its turn."""
    outputs, inputs = w.shape
    precision = lax.Precision.HIGHEST

    def round_block(number, carry):
        w, q, scales, zeros = carry
        start = number * size
        part = lax.dynamic_slice(w, (0, start), (outputs, size))
        own = lax.dynamic_slice(factor, (start, start), (size, size))
        if columns is None:
            assert scale_dtype is not None
            grid = min_max_grid(part, size, scale_dtype, lowest_zero)
            scales = lax.dynamic_update_slice(scales, grid.scale, (0, number))
            zeros = lax.dynamic_update_slice(zeros, grid.zero, (0, number))
            scale, zero = jnp.broadcast_to(grid.scale, part.shape), jnp.broadcast_to(grid.zero, part.shape)
        else:
            scale = lax.dynamic_slice(columns.scale, (0, start), part.shape)
            zero = lax.dynamic_slice(columns.zero, (0, start), part.shape)

        def round_column(i, inner):
            part, q_part, errors = inner
            value, s, z = part[:, i], scale[:, i], zero[:, i]
            level = jnp.clip(jnp.round(value / s) + z, 0.0, LARGEST)
            error = (value - (level - z) * s) / own[i, i]
            part = part - error[:, None] * own[i][None]
            return part, q_part.at[:, i].set(level), errors.at[:, i].set(error)

        zeros_like = jnp.zeros_like(part)
        _, q_part, errors = lax.fori_loop(0, size, round_column, (part, zeros_like, zeros_like))
        rows = lax.dynamic_slice(factor, (start, 0), (size, inputs))
        # Rows of an upper triangle: columns that are done are not touched, those of this block are not looked at again.
        w = w - jnp.matmul(errors, rows, precision=precision)
        return w, lax.dynamic_update_slice(q, q_part, (0, start)), scales, zeros

    count = inputs // size
    empty = jnp.zeros((outputs, count), jnp.float32)
    _, q, scales, zeros = lax.fori_loop(0, count, round_block, (w, jnp.zeros_like(w), empty, empty))
    return q, Grid(scales, zeros)
