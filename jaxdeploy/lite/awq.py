"""Activation-aware scaling of input channels (AWQ, arXiv:2306.00978).

Channels with large inputs are multiplied by s before rounding, and what writes them is divided by s: the layer computes the
same, but the rounding error of those channels shrinks. Pairs (who is divided -> whose columns are multiplied): input norm ->
q, k, v; v -> o (one s for all query heads that share a value head); post norm -> gate, up; up -> down.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.lite.block import DOWN, GATE_UP, LINEARS, OUT, QKV, Positions, Weights, gated, mixed_values, project
from jaxdeploy.lite.program import programs
from jaxdeploy.lite.recipe import Recipe
from jaxdeploy.lite.rounding import grouped, nearest
from jaxdeploy.lite.statistics import LayerStatistics

FIXED_ALPHA = 0.5
NORMS = {QKV: "attention_norm.weight", GATE_UP: "mlp_norm.weight"}
_SMALLEST = 1e-4  # of a scale before it is normalized, as in AutoAWQ and LMDeploy


def weight_importance(w: Float[Array, "N K"], group_size: int) -> Float[Array, " K"]:
    """Mean over outputs of each weight's share of the largest in its group; 0 where a group is all zeros."""
    size = jnp.abs(grouped(w, group_size))
    largest = size.max(axis=-1, keepdims=True)
    return jnp.mean((size / jnp.where(largest > 0, largest, 1.0)).reshape(w.shape), axis=0)


def channel_scales(mean_abs: Float[Array, " K"], importance: Float[Array, " K"], alpha: Any) -> Float[Array, " K"]:
    """``s = max(a^alpha / w^(1 - alpha), 1e-4)``, divided by ``sqrt(max * min)``; 1 where inputs or weights are all 0."""
    live = (mean_abs > 0) & (importance > 0)
    a, w = jnp.where(live, mean_abs, 1.0), jnp.where(live, importance, 1.0)
    s = jnp.maximum(a**alpha / w ** (1 - alpha), _SMALLEST)
    largest = jnp.max(jnp.where(live, s, 0.0))
    smallest = jnp.min(jnp.where(live, s, jnp.inf))
    middle = jnp.sqrt(largest * smallest)
    return jnp.where(live & jnp.isfinite(middle) & (middle > 0), s / middle, 1.0)


def pair_scales(
    config: ModelConfig, linear: str, weights: Weights, statistics: LayerStatistics, group_size: int, alpha: Any
) -> Float[Array, " K"]:
    """Scales of a linear module's inputs at one alpha."""
    mean_abs = statistics[linear].mean_abs
    importance = weight_importance(weights[f"{linear}.weight"], group_size)
    if linear != OUT:
        return channel_scales(mean_abs, importance, alpha)
    shape = (config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
    mean_abs, importance = (part.reshape(shape).mean(axis=1).ravel() for part in (mean_abs, importance))
    return expand_value_heads(config, channel_scales(mean_abs, importance, alpha))


def expand_value_heads(config: ModelConfig, s: Float[Array, " KH"]) -> Float[Array, " NH"]:
    """From one number per value channel to one per channel of the output projection's input."""
    per_head = s.reshape(config.num_kv_heads, 1, config.head_dim)
    return jnp.repeat(per_head, config.num_heads // config.num_kv_heads, axis=1).ravel()


def fold_scales(
    config: ModelConfig, linear: str, weights: Weights, s: Float[Array, " K"], norm_dtype: Any
) -> tuple[Weights, Float[Array, " K"]]:
    """The layer with one pair scaled; it computes the same.

    Args:
        weights: float32.
        s: multiplies the columns of ``linear``.
        norm_dtype: in which the checkpoint stores norms. The norm is rounded here, and the columns take what it really was
            divided by, so that rounding it costs nothing.

    Returns:
        The changed weights and the scales that were really applied.
    """
    changed = dict(weights)
    if linear in NORMS:
        norm = weights[NORMS[linear]]
        divided = (norm / s).astype(norm_dtype).astype(jnp.float32)
        usable = (divided != 0) & jnp.isfinite(divided) & (norm != 0)
        s = jnp.where(usable, norm / jnp.where(usable, divided, 1.0), 1.0)
        changed[NORMS[linear]] = jnp.where(usable, divided, norm)
    else:
        before, rows, divisor = _writer_rows(config, linear, s)
        for part in ("weight", "bias"):
            array = weights.get(f"{before}.{part}")
            if array is not None:
                shape = (-1,) + (1,) * (array.ndim - 1)
                changed[f"{before}.{part}"] = array.at[rows].divide(divisor.reshape(shape))
    changed[f"{linear}.weight"] = weights[f"{linear}.weight"] * s
    return changed, s


def _writer_rows(config: ModelConfig, linear: str, s: jax.Array) -> tuple[str, slice, jax.Array]:
    """(module, its rows that write the inputs of ``linear``, what to divide each by)."""
    if linear == DOWN:
        return GATE_UP, slice(config.intermediate_size, None), s
    first = (config.num_heads + config.num_kv_heads) * config.head_dim
    shape = (config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
    return QKV, slice(first, None), s.reshape(shape)[:, 0].ravel()


def _own_error(w: jax.Array, tried: jax.Array, products: jax.Array) -> jax.Array:
    """Squared error of the module's own output, summed over tokens; a GPU's TF32 is good enough to compare trials."""
    change = tried - w
    return jnp.sum(jnp.matmul(change, products) * change)


def _half_output(config: ModelConfig, linear: str, weights: Weights, x: jax.Array, places: Positions) -> jax.Array:
    """The attention's or the MLP's output; x is what ``linear`` reads."""
    if linear == QKV:
        return project(weights, OUT, mixed_values(config, weights, x, places))
    return project(weights, DOWN, gated(weights, x))


@programs(static_argnums=(0, 1, 7, 8))
def trial_errors(
    config: ModelConfig,
    linear: str,
    weights: Weights,
    statistics: LayerStatistics,
    samples: list[jax.Array],
    places: Positions,
    alphas: Float[Array, " A"],
    group: int,
    scale_dtype: str,
) -> Float[Array, " 1+A"]:
    """Error of the block's output, unscaled and at each alpha. All trials are one program: the host waits once."""
    w = weights[f"{linear}.weight"]
    exact = [] if linear in (OUT, DOWN) else [_half_output(config, linear, weights, x, places) for x in samples]

    def error(tried: jax.Array) -> jax.Array:
        if linear in (OUT, DOWN):
            return _own_error(w, tried, statistics[linear].products)
        changed = {**weights, f"{linear}.weight": tried}
        found = [_half_output(config, linear, changed, x, places) for x in samples]
        return sum(
            (
                jnp.sum(jnp.square(y.astype(jnp.float32) - z.astype(jnp.float32)))
                for y, z in zip(found, exact, strict=True)
            ),
            start=jnp.float32(0),
        )

    def scaled_error(alpha: jax.Array) -> jax.Array:
        s = pair_scales(config, linear, weights, statistics, group, alpha)
        return error(nearest(w * s, group, scale_dtype) / s)

    return jnp.concatenate([error(nearest(w, group, scale_dtype))[None], jax.lax.map(scaled_error, alphas)])


@programs(static_argnums=(0, 5, 6))
def apply_scales(
    config: ModelConfig,
    weights: Weights,
    statistics: LayerStatistics,
    alphas: dict[str, Any],
    wanted: dict[str, Any],
    groups: tuple[int, ...],
    scale_dtype: str,
) -> tuple[Weights, LayerStatistics]:
    """Weights and statistics with each pair scaled at its alpha, if that is wanted."""
    scaled, counted = weights, dict(statistics)
    for linear, group in zip(LINEARS, groups, strict=True):
        s = pair_scales(config, linear, weights, statistics, group, alphas[linear])
        folded, s = fold_scales(config, linear, scaled, s, scale_dtype)
        divided = statistics[linear].divided(s)
        keep = partial(jnp.where, wanted[linear])
        scaled = jax.tree.map(keep, folded, scaled)
        counted[linear] = jax.tree.map(keep, divided, counted[linear])
    return scaled, counted


def choose_alpha(
    config: ModelConfig,
    linear: str,
    weights: Weights,
    statistics: LayerStatistics,
    samples: list[jax.Array],
    places: Positions,
    recipe: Recipe,
    scale_dtype: str,
) -> tuple[float | None, float]:
    """The alpha of the grid with the least error of the block's output.

    For o and down the block's output is their own, so its error follows from the statistics of all tokens. For q, k, v and for
    gate, up the rest of the block is run on ``samples``, what these modules read.

    Returns:
        alpha, or None if not scaling at all is best, and the error as a share of the unscaled one's.
    """
    group = recipe.group_of(weights[f"{linear}.weight"].shape[1])
    grid = np.arange(recipe.alphas, dtype=np.float32) / np.float32(recipe.alphas)
    found = trial_errors(
        config, linear, weights, {linear: statistics[linear]}, samples, places, grid, group, scale_dtype
    )
    plain, *errors = np.asarray(found, np.float64)
    best = int(np.nanargmin(errors))
    if not errors[best] < plain:
        return None, 1.0
    return best / recipe.alphas, float(errors[best] / plain)


def scale_layer(
    config: ModelConfig,
    weights: Weights,
    statistics: LayerStatistics,
    samples: dict[str, list[jax.Array]],
    places: Positions,
    recipe: Recipe,
    scale_dtype: str,
) -> tuple[Weights, LayerStatistics, dict[str, float | None]]:
    """Scale all pairs of a layer.

    Each pair is searched on the layer as it came: scaling one changes only rows as a whole in another's matrix, which rounding
    does not see.

    Returns:
        Weights and statistics of the scaled layer, and the alpha of each pair (None: left as it was).
    """
    alphas: dict[str, float | None] = {}
    for linear in LINEARS:
        alphas[linear] = FIXED_ALPHA
        if recipe.scaling == "search":
            chosen = choose_alpha(
                config, linear, weights, statistics, samples.get(linear, []), places, recipe, scale_dtype
            )
            alphas[linear] = chosen[0]
    wanted = {linear: np.bool_(alpha is not None) for linear, alpha in alphas.items()}
    applied = {linear: np.float32(alpha or 0.0) for linear, alpha in alphas.items()}
    groups = tuple(recipe.group_of(weights[f"{linear}.weight"].shape[1]) for linear in LINEARS)
    scaled, counted = apply_scales(config, weights, statistics, applied, wanted, groups, scale_dtype)
    return scaled, counted, alphas
