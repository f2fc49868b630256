"""Quantizing one layer: statistics, scales, ranges, rounding."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.lite.auto_round import learn_rounding
from jaxdeploy.lite.awq import scale_layer
from jaxdeploy.lite.block import GATE_UP, LINEARS, QKV, Positions, Weights
from jaxdeploy.lite.block_stream import BlockStream, linear_inputs, relative_error
from jaxdeploy.lite.clip import search_ranges
from jaxdeploy.lite.gptq import gptq_round
from jaxdeploy.lite.layer_weights import QuantizedLinear
from jaxdeploy.lite.program import program, programs
from jaxdeploy.lite.recipe import Recipe
from jaxdeploy.lite.rounding import Grid, dequantize, fit_grid, group_range, round_nearest
from jaxdeploy.lite.stages import Stages
from jaxdeploy.lite.statistics import LayerStatistics


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A layer after quantization.

    Attributes:
        linears: the rounded matrices.
        weights: what the checkpoint will give back: matrices de-quantized, norms and biases as they are stored; float32.
        alphas: scale search's choice by linear module; None where it left the module as it was, {} if nothing was scaled.
        shares: mean share of its range that a group spans, by linear module; {} if nothing was clipped.
        error: squared error of the layer's output, as a share of what the layer adds to its input.
    """

    linears: dict[str, QuantizedLinear]
    weights: Weights
    alphas: dict[str, float | None]
    shares: dict[str, float]
    error: float


class LayerQuantizer:
    """Quantizes layers of one model by one recipe.

    Args:
        config: of the float model.
        recipe: what to do.
        dtype: "bfloat16" or "float16", in which the checkpoint stores scales, norms and biases.
        stages: counts the time.
    """

    def __init__(self, config: ModelConfig, recipe: Recipe, dtype: str, stages: Stages):
        self._config, self._recipe, self._dtype, self._stages = config, recipe, dtype, stages

    def quantize(
        self, weights: Weights, stream: BlockStream, exact: BlockStream | None, places: Positions
    ) -> QuantizedLayer:
        """Quantize a layer whose inputs are ``stream``, which the layers before have left, already quantized.

        Args:
            weights: of the layer, float32.
            stream: its inputs.
            exact: what the float model's next layer gets, for learned rounding to aim at; None aims at what this layer would make
                of ``stream``.
            places: of the samples' tokens.
        """
        recipe, original = self._recipe, weights
        statistics: LayerStatistics = {}
        if recipe.scaling != "none" or recipe.clip or recipe.rounding == "gptq":
            with self._stages.timed("statistics"):
                statistics = jax.block_until_ready(stream.statistics(weights, places))
        alphas: dict[str, float | None] = {}
        if recipe.scaling != "none":
            with self._stages.timed("scales"):
                samples = self._samples(weights, stream, places)
                weights, statistics, alphas = scale_layer(
                    self._config, weights, statistics, samples, places, recipe, self._dtype
                )
        weights = as_stored(weights, self._dtype)
        with self._stages.timed("ranges"):
            shares = jax.block_until_ready({linear: self._share(linear, weights, statistics) for linear in LINEARS})
        with self._stages.timed("rounding"):
            if recipe.rounding == "learned":
                rounded = self._learn(weights, shares, stream, exact, places)
            else:
                rounded = {linear: self._round(linear, weights, statistics, shares[linear]) for linear in LINEARS}
            finished = jax.block_until_ready({linear: finish(*parts) for linear, parts in rounded.items()})
            weights |= {f"{linear}.weight": parts[0] for linear, parts in finished.items()}
        with self._stages.timed("error"):
            errors = [
                relative_error(self._config, original, weights, x, places)
                for x in stream.first_tokens(recipe.search_tokens)
            ]
            wrong, size = np.sum(np.asarray(jnp.array(errors), np.float64), axis=0).tolist()
        with self._stages.timed("write"):
            linears = {linear: _on_host(*parts[1:]) for linear, parts in finished.items()}
        return QuantizedLayer(
            linears=linears,
            weights=weights,
            alphas=alphas,
            shares={linear: float(np.mean(share)) for linear, share in shares.items()} if recipe.clip else {},
            error=wrong / max(size, 1e-30),
        )

    def _samples(self, weights: Weights, stream: BlockStream, places: Positions) -> dict[str, list[jax.Array]]:
        if self._recipe.scaling != "search":
            return {}
        inputs = [
            linear_inputs(self._config, weights, x, places) for x in stream.first_tokens(self._recipe.search_tokens)
        ]
        return {linear: [chunk[linear] for chunk in inputs] for linear in (QKV, GATE_UP)}

    def _group(self, weights: Weights, linear: str) -> int:
        return self._recipe.group_of(weights[f"{linear}.weight"].shape[1])

    def _share(self, linear: str, weights: Weights, statistics: LayerStatistics) -> Any:
        w, group = weights[f"{linear}.weight"], self._group(weights, linear)
        if not self._recipe.clip:
            return np.ones((w.shape[0], w.shape[1] // group), np.float32)
        return search_ranges(w, statistics[linear].products, group, self._dtype, self._recipe.lowest_zero)

    def _fitted(self, linear: str, weights: Weights, share: jax.Array) -> Grid:
        group = self._group(weights, linear)
        return fit(weights[f"{linear}.weight"], share, group, self._dtype, self._recipe.lowest_zero)

    def _round(
        self, linear: str, weights: Weights, statistics: LayerStatistics, share: jax.Array
    ) -> tuple[jax.Array, Grid, jax.Array | None]:
        recipe, w = self._recipe, weights[f"{linear}.weight"]
        if recipe.rounding == "nearest":
            grid = self._fitted(linear, weights, share)
            return nearest_levels(w, grid), grid, None
        hessian = statistics[linear].hessian
        order = jnp.argsort(-jnp.diagonal(hessian)) if recipe.act_order else None
        fitted = recipe.clip or (recipe.act_order and not recipe.stored_act_order)
        grid = self._fitted(linear, weights, share) if fitted and not recipe.stored_act_order else None
        q, grid = gptq_round(
            w,
            hessian,
            group_size=self._group(weights, linear),
            scale_dtype=self._dtype,
            lowest_zero=recipe.lowest_zero,
            damping=recipe.damping,
            grid=grid,
            order=order,
        )
        return q, grid, order if recipe.stored_act_order else None

    def _learn(
        self,
        weights: Weights,
        shares: dict[str, jax.Array],
        stream: BlockStream,
        exact: BlockStream | None,
        places: Positions,
    ) -> dict[str, tuple[jax.Array, Grid, jax.Array | None]]:
        targets = exact.chunks if exact is not None else stream.next_chunks(weights, places)
        batches = _join(stream.chunks, targets, self._recipe.step_tokens)
        ranges = {
            linear: (*_ranges(weights[f"{linear}.weight"], self._group(weights, linear)), shares[linear])
            for linear in LINEARS
        }
        learned, _ = learn_rounding(self._config, weights, ranges, batches, places, self._recipe, self._dtype)
        return {linear: (q, grid, None) for linear, (q, grid) in learned.items()}


def _join(inputs: list[jax.Array], targets: list[jax.Array], tokens: int) -> list[tuple[jax.Array, jax.Array]]:
    """Chunks of the same shape put together or cut up until they have ``tokens``; leftovers of another shape are dropped."""
    size, length = inputs[0].shape[:2]
    rows = max(tokens // length, 1)
    if rows < size:
        return [
            (x[start : start + rows], y[start : start + rows])
            for x, y in zip(inputs, targets, strict=True)
            for start in range(0, x.shape[0] - rows + 1, rows)
        ]
    count = min(max(tokens // (size * length), 1), max(len(inputs) - (inputs[-1].shape[0] != size), 1))
    batches = []
    for start in range(0, len(inputs) - count + 1, count):
        parts = inputs[start : start + count], targets[start : start + count]
        if all(part.shape[0] == size for part in parts[0]):
            batches.append((jnp.concatenate(parts[0]), jnp.concatenate(parts[1])))
    return batches


@programs(static_argnums=(1,))
def as_stored(weights: Weights, dtype: str) -> Weights:
    """As the checkpoint will hold it: what is not rounded to int4 is rounded to ``dtype``."""
    kept = {f"{linear}.weight" for linear in LINEARS}
    return {name: array if name in kept else array.astype(dtype).astype(jnp.float32) for name, array in weights.items()}


@programs()
def finish(q: jax.Array, grid: Grid, order: jax.Array | None) -> tuple[jax.Array, jax.Array, Grid, jax.Array | None]:
    """The matrix de-quantized with its columns in the order of the inputs, then q, grid and order as the host keeps them."""
    w = dequantize(q, grid)
    w = w if order is None else jnp.zeros_like(w).at[:, order].set(w)
    return w, q.astype(jnp.uint8), Grid(grid.scale, grid.zero.astype(jnp.uint8)), order


@programs(static_argnums=(2, 3, 4))
def fit(w: jax.Array, share: jax.Array, group: int, scale_dtype: str, lowest_zero: int) -> Grid:
    """The grid of groups that span ``share`` [N, Gn] of their ranges."""
    low, high = group_range(w, group)
    return fit_grid(low * share, high * share, scale_dtype, lowest_zero)


nearest_levels = program(round_nearest)
_ranges = program(group_range, static_argnums=(1,))


def _on_host(q: jax.Array, grid: Grid, order: jax.Array | None) -> QuantizedLinear:
    return QuantizedLinear(
        np.asarray(q),
        np.asarray(grid.scale),
        np.asarray(grid.zero),
        None if order is None else np.asarray(order).astype(np.int32),
    )
