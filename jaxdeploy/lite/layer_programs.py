"""The programs that all layers run, compiled side by side before the first: one after the other they take as long as ten layers."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.lite import awq, gptq, layer_quantizer
from jaxdeploy.lite.block import GATE_UP, LINEARS, QKV, Positions
from jaxdeploy.lite.block_stream import linear_inputs, relative_error, run_chunk
from jaxdeploy.lite.clip import search_ranges
from jaxdeploy.lite.program import cast
from jaxdeploy.lite.recipe import Recipe
from jaxdeploy.lite.rounding import Grid
from jaxdeploy.lite.statistics import InputStatistics, count_chunk

_THREADS = 16


class LayerShapes(NamedTuple):
    """What a layer's programs are compiled for.

    Attributes:
        weights: dtype and shape of each array of the layer, as the checkpoint stores it.
        chunk: [B, T, D] of the calibration's activations.
        chunks: how many there are of this shape.
        dtype: of activations.
        stored_dtype: in which the int4 checkpoint stores what stays float.
    """

    weights: Mapping[str, Any]
    chunk: tuple[int, ...]
    chunks: int
    dtype: str
    stored_dtype: str


class Call(NamedTuple):
    """A program with what it is called with, arrays described by ShapeDtypeStructs.

    Attributes:
        stage: of the report in which it runs.
    """

    stage: str
    program: Any
    arguments: tuple


def compiles_ahead() -> bool:
    """Whether it pays: a CPU's cores have enough to do, and few of the programs are as large there."""
    return jax.default_backend() != "cpu"


def compile_layer(config: ModelConfig, recipe: Recipe, shapes: LayerShapes) -> None:
    """Compile them in threads; the layers' own calls then find them.

    Learned rounding's and act-order's own programs are left to their first call.
    """
    calls = {repr((call.program.__name__, call.arguments)): call for call in layer_calls(config, recipe, shapes)}
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "compile") as pool:
        for _ in pool.map(lambda call: call.program.lower(*call.arguments).compile(), calls.values()):
            pass


def layer_calls(config: ModelConfig, recipe: Recipe, shapes: LayerShapes) -> Iterator[Call]:
    """The programs of a layer, the ones that take longest to compile first."""
    weights = {name: _float32(*array.shape) for name, array in shapes.weights.items()}
    half = config.head_dim // 2
    batch, length = shapes.chunk[:2]
    searched = min(max(recipe.search_tokens // (batch * length), 1), shapes.chunks)
    places = Positions(_float32(length, half), _float32(length, half), jax.ShapeDtypeStruct((), jnp.int32))
    x = jax.ShapeDtypeStruct(shapes.chunk, shapes.dtype)
    inputs = {linear: weights[f"{linear}.weight"].shape[1] for linear in LINEARS}
    statistics = {
        linear: InputStatistics(_float32(), _float32(size, size), _float32(size), _float32(size))
        for linear, size in inputs.items()
    }
    if recipe.scaling != "none" or recipe.clip or recipe.rounding == "gptq":
        yield Call("statistics", count_chunk, (config, weights, x, places, statistics))
    if recipe.scaling == "search":
        yield Call("scales", linear_inputs, (config, weights, x, places))
        for linear in LINEARS:
            samples = [x] * searched if linear in (QKV, GATE_UP) else []
            grid, group = _float32(recipe.alphas), recipe.group_of(inputs[linear])
            own = {linear: statistics[linear]}
            arguments = (config, linear, weights, own, samples, places, grid, group, shapes.stored_dtype)
            yield Call("scales", awq.trial_errors, arguments)
    if recipe.scaling != "none":
        alphas = {linear: _float32() for linear in LINEARS}
        wanted = {linear: jax.ShapeDtypeStruct((), jnp.bool_) for linear in LINEARS}
        groups = tuple(recipe.group_of(inputs[linear]) for linear in LINEARS)
        arguments = (config, weights, statistics, alphas, wanted, groups, shapes.stored_dtype)
        yield Call("scales", awq.apply_scales, arguments)
    yield Call("error", relative_error, (config, weights, weights, x, places))
    narrow = {name: jax.ShapeDtypeStruct(array.shape, shapes.dtype) for name, array in weights.items()}
    yield Call("forward", run_chunk, (config, narrow, x, places))
    for linear in LINEARS:
        yield from _rounding_calls(weights[f"{linear}.weight"], recipe, shapes.stored_dtype)
    yield Call("read", cast, (dict(shapes.weights), "float32"))
    yield Call("forward", cast, (weights, shapes.dtype))
    yield Call("scales", layer_quantizer.as_stored, (weights, shapes.stored_dtype))


def _rounding_calls(w: jax.ShapeDtypeStruct, recipe: Recipe, stored_dtype: str) -> Iterator[Call]:
    outputs, inputs = w.shape
    group = recipe.group_of(inputs)
    shares: Any = _float32(outputs, inputs // group)
    grid = Grid(shares, shares)
    if recipe.clip:
        yield Call("ranges", search_ranges, (w, _float32(inputs, inputs), group, stored_dtype, recipe.lowest_zero))
    if recipe.rounding == "learned" or recipe.act_order:
        return
    if recipe.rounding == "gptq":
        factor, columns = _float32(inputs, inputs), jax.ShapeDtypeStruct((inputs,), jnp.int32)
        yield Call("rounding", gptq.factor_of, (factor, _float32()))
        if recipe.clip:
            yield Call("rounding", gptq.sweep, (w, factor, grid, columns, gptq.block_of(inputs), None, 0))
        elif recipe.group_size != -1:
            arguments = (w, factor, None, columns, group, stored_dtype, recipe.lowest_zero)
            yield Call("rounding", gptq.sweep, arguments)
    if recipe.clip or recipe.rounding == "nearest":
        yield Call("rounding", layer_quantizer.fit, (w, shares, group, stored_dtype, recipe.lowest_zero))
    if recipe.rounding == "nearest":
        yield Call("rounding", layer_quantizer.nearest_levels, (w, grid))
    yield Call("rounding", layer_quantizer.finish, (w, grid, None))


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
