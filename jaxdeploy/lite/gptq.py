"""GPTQ (arXiv:2210.17323): columns are rounded one by one, and those still to come make up for the error."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdeploy.lite.program import programs
from jaxdeploy.lite.rounding import LARGEST, Grid, min_max_grid

_WIDEST_BLOCK = 128  # columns whose error is passed on together
_TRIES = 6
COLUMNS_PER_TURN = {"cpu": 1, "gpu": 8}
"""Of the loop over columns, by platform: a turn costs a GPU two launches besides the column's own, a CPU nothing."""


def inverse_factor(hessian: Float[Array, "K K"], damping: float) -> Float[Array, "K K"]:
    """Upper triangular U with ``U^T U = (hessian + damping * mean diagonal)^-1``.

    A channel that is always 0 gets a diagonal of 1 and is simply rounded. The damping grows tenfold while the factorization
    fails, which a Hessian of few tokens can make it.
    """
    for attempt in range(_TRIES):
        factor, finite = factor_of(hessian, np.float32(damping * 10.0**attempt))
        if bool(finite):
            return factor
    # No structure left to trust: independent columns, which is rounding to nearest.
    return jnp.eye(hessian.shape[0], dtype=jnp.float32)


@programs()
def factor_of(hessian: jax.Array, damping: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The factor, and whether all of it is finite."""
    diagonal = jnp.diagonal(hessian)
    mean = jnp.mean(diagonal)
    added = jnp.where(diagonal <= 0, jnp.maximum(mean, 1.0), 0.0) + jnp.maximum(damping * mean, 1e-8)
    identity = jnp.eye(hessian.shape[0], dtype=jnp.float32)
    damped = hessian + added * identity
    # R R^T = damped with R upper comes from the Cholesky factor of the matrix turned upside down; then U is R's inverse.
    upper = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    factor = jax.scipy.linalg.solve_triangular(upper, identity, lower=False)
    return factor, jnp.isfinite(factor).all()


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
    groups = np.arange(inputs, dtype=np.int32) // group_size
    if order is not None:
        w, hessian, ordered = _ordered(w, hessian, groups, order)
        groups = ordered if grid is not None else groups
    factor = inverse_factor(hessian, damping)
    if grid is None:
        if group_size > 2 * _WIDEST_BLOCK:
            # One wide group: fitted to the weights as they came, for its columns are not updated all at once.
            wide: Grid = _min_max_grid(w, group_size, scale_dtype, lowest_zero)
            return sweep(w, factor, wide, groups, block_of(inputs), None, 0)[0], wide
        return sweep(w, factor, None, groups, group_size, scale_dtype, lowest_zero)
    rounded: jax.Array = sweep(w, factor, grid, groups, block_of(inputs), None, 0)[0]
    return (rounded if order is None else _restored(rounded, order)), grid


_min_max_grid = programs(static_argnums=(1, 2, 3))(min_max_grid)


@programs()
def _ordered(
    w: jax.Array, hessian: jax.Array, groups: jax.Array, order: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Columns, and the groups that they belong to, in ``order``."""
    return w[:, order], hessian[order][:, order], groups[order]


@programs()
def _restored(q: jax.Array, order: jax.Array) -> jax.Array:
    return jnp.zeros_like(q).at[:, order].set(q)


def block_of(inputs: int) -> int:
    """How many columns of a matrix are rounded before their error is passed on, if a block need not be a group."""
    return next(size for size in range(min(_WIDEST_BLOCK, inputs), 0, -1) if inputs % size == 0)


@programs(static_argnums=(4, 5, 6))
def sweep(
    w: jax.Array,
    factor: jax.Array,
    grid: Grid | None,
    groups: jax.Array,
    size: int,
    scale_dtype: str | None,
    lowest_zero: int,
) -> tuple[jax.Array, Grid]:
    """Round all columns, ``size`` at a time.

    Args:
        grid: of all groups; None: a block is a group, whose grid is fitted at its turn.
        groups: to which of them each column belongs.

    Returns:
        q and the grid that was fitted, of zeros where one was given.
    """
    outputs, inputs = w.shape
    precision = lax.Precision.HIGHEST
    places, columns_per_turn = jnp.arange(size), COLUMNS_PER_TURN.get(jax.default_backend(), 1)

    def round_block(number: jax.Array, carry: tuple[jax.Array, Grid]) -> tuple[jax.Array, Grid]:
        # Columns that are done hold q; rows of the factor are 0 there.
        w, fitted = carry
        start = number * size
        part = lax.dynamic_slice(w, (0, start), (outputs, size))
        own = lax.dynamic_slice(factor, (start, start), (size, size))
        if grid is None:
            assert scale_dtype is not None
            found = min_max_grid(part, size, scale_dtype, lowest_zero)
            fitted = Grid(*(lax.dynamic_update_slice(a, b, (0, number)) for a, b in zip(fitted, found, strict=True)))
            scale, zero = (jnp.broadcast_to(array, part.shape) for array in found)
        else:
            columns = lax.dynamic_slice(groups, (start,), (size,))
            scale, zero = grid.scale[:, columns], grid.zero[:, columns]

        def round_column(i: jax.Array, part: jax.Array) -> jax.Array:
            value, s, z = part[:, i], scale[:, i], zero[:, i]
            error = (value - (_level(value, s, z) - z) * s) / own[i, i]
            # Of its own, or it would be computed anew for each column that it goes to.
            error = lax.optimization_barrier(error)[:, None]
            # Column i keeps its error, those to its right make up for it.
            return jnp.where(places == i, error, part - error * own[i])

        errors = lax.fori_loop(0, size, round_column, part, unroll=min(columns_per_turn, size))
        # What is left of the block's weights after its errors: points of the grid, but for float32's last digits.
        q = _level(part - jnp.matmul(errors, own, precision=precision), scale, zero)
        rows = lax.dynamic_slice(factor, (start, 0), (size, inputs))
        w = w - jnp.matmul(errors, rows, precision=precision)
        return lax.dynamic_update_slice(w, q, (0, start)), fitted

    count = inputs // size
    empty = jnp.zeros((outputs, count if grid is None else 0), jnp.float32)
    return lax.fori_loop(0, count, round_block, (w, Grid(empty, empty)))


def _level(value: jax.Array, scale: jax.Array, zero: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(value / scale) + zero, 0.0, LARGEST)
