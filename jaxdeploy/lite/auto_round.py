"""Learned rounding and clipping (SignRound, arXiv:2309.05516): signed gradient steps on a whole block's output error.

For every weight an offset in [-0.5, 0.5] is learned that is added before rounding, and for every group two shares in
[0.5, 1] by which its range shrinks. Rounding passes gradients through (straight-through estimator).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.lite.block import LINEARS, Positions, Weights, block
from jaxdeploy.lite.program import program, programs
from jaxdeploy.lite.recipe import Recipe
from jaxdeploy.lite.rounding import LARGEST, Grid, fit_scale, grouped

_NARROWEST = 0.5


class Offsets(NamedTuple):
    """What is learned of one matrix."""

    rounding: jax.Array  # [N, K]
    low: jax.Array  # [N, Gn]
    high: jax.Array  # [N, Gn]


class Fixed(NamedTuple):
    """What is not: the matrix and its groups' ranges."""

    weight: jax.Array  # [N, K]
    low: jax.Array  # [N, Gn]
    high: jax.Array  # [N, Gn]


class Choice(NamedTuple):
    """Settings of the rounding that never change during a run."""

    scale_dtype: str
    lowest_zero: int


def _through(value: jax.Array, rounded: jax.Array) -> jax.Array:
    """``rounded``, with the gradient of ``value``."""
    return value + jax.lax.stop_gradient(rounded - value)


def rounded(fixed: Fixed, offsets: Offsets, choice: Choice) -> tuple[jax.Array, Grid]:
    """(q, grid) with straight-through gradients."""
    low, high = fixed.low * offsets.low, fixed.high * offsets.high
    scale = _through((high - low) / LARGEST, fit_scale(low, high, choice.scale_dtype))
    ratio = -low / scale
    zero = jnp.clip(_through(ratio, jnp.round(ratio)), choice.lowest_zero, LARGEST)
    size = fixed.weight.shape[1] // scale.shape[1]
    level = grouped(fixed.weight, size) / scale[..., None] + grouped(offsets.rounding, size)
    q = jnp.clip(_through(level, jnp.round(level)) + zero[..., None], 0.0, LARGEST)
    return q.reshape(fixed.weight.shape), Grid(scale, zero)


def _rounded_weights(weights: Weights, fixed: dict[str, Fixed], offsets: dict[str, Offsets], choice: Choice) -> Weights:
    changed = dict(weights)
    for linear in LINEARS:
        q, grid = rounded(fixed[linear], offsets[linear], choice)
        size = q.shape[1] // grid.scale.shape[1]
        w = (grouped(q, size) - grid.zero[..., None]) * grid.scale[..., None]
        changed[f"{linear}.weight"] = w.reshape(q.shape)
    return changed


def _loss(offsets, fixed, weights, x, target, places, config, choice):
    out, _ = block(config, _rounded_weights(weights, fixed, offsets, choice), x, places)
    return jnp.mean(jnp.square(out.astype(jnp.float32) - target.astype(jnp.float32)))


def _optimizer(steps: int) -> optax.GradientTransformation:
    # The paper's rate: a step can move an offset by 1/steps, so all of them together by half the way, falling linearly.
    return optax.sign_sgd(optax.linear_schedule(1.0 / steps, 0.0, steps))


@programs(static_argnums=(7, 8, 9), donate_argnums=(0, 1))
def _step(offsets, state, fixed, weights, x, target, places, config, choice, steps):
    gradients = jax.grad(_loss)(offsets, fixed, weights, x, target, places, config, choice)
    updates, state = _optimizer(steps).update(gradients, state)
    moved: Any = optax.apply_updates(offsets, updates)
    bounded = {
        linear: Offsets(
            jnp.clip(o.rounding, -0.5, 0.5), jnp.clip(o.low, _NARROWEST, 1.0), jnp.clip(o.high, _NARROWEST, 1.0)
        )
        for linear, o in moved.items()
    }
    return bounded, state


_measure = program(_loss, static_argnums=(6, 7))
_finish = program(rounded, static_argnums=(2,))


def learn_rounding(
    config: ModelConfig,
    weights: Weights,
    ranges: dict[str, tuple[jax.Array, jax.Array, jax.Array]],
    batches: list[tuple[jax.Array, jax.Array]],
    places: Positions,
    recipe: Recipe,
    scale_dtype: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, tuple[jax.Array, Grid]], tuple[float, float]]:
    """Round all matrices of a layer together.

    Args:
        weights: of the layer, float32 matrices.
        ranges: (low, high, share) of every linear module's groups: its min-max range and the share of it to start from.
        batches: (x, what the layer's output should be), [B, T, D] each; a step takes one of them at random.
        places: of these sequences.

    Returns:
        (q, grid) by linear module, and the mean squared error of the layer's output before and after learning. Should learning
        not have helped, the start is returned.
    """
    choice = Choice(scale_dtype, recipe.lowest_zero)
    fixed, start = {}, {}
    for linear in LINEARS:
        w = weights[f"{linear}.weight"]
        low, high, share = ranges[linear]
        # A group of zeros has no range; any will do, so that nothing is divided by 0.
        empty = high == low
        fixed[linear] = Fixed(w, low, jnp.where(empty, 1.0, high))
        start[linear] = Offsets(jnp.zeros_like(w), share, jnp.array(share))
    rest = {name: array for name, array in weights.items() if name.removesuffix(".weight") not in LINEARS}

    def measure(offsets) -> float:
        losses = [_measure(offsets, fixed, rest, x, y, places, config, choice) for x, y in batches]
        return float(jnp.mean(jnp.stack(losses)))

    before = measure(start)
    offsets = jax.tree.map(jnp.copy, start)
    state: Any = _optimizer(recipe.steps).init(offsets)
    turns = np.random.default_rng(recipe.seed).integers(len(batches), size=recipe.steps)
    for step, turn in enumerate(turns, 1):
        x, y = batches[turn]
        offsets, state = _step(offsets, state, fixed, rest, x, y, places, config, choice, recipe.steps)
        if progress:
            progress(step, recipe.steps)
    after = measure(offsets)
    if not after < before:
        offsets, after = start, before
    return {linear: _finish(fixed[linear], offsets[linear], choice) for linear in LINEARS}, (before, after)
