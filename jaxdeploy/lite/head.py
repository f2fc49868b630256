"""The output matrix in 8 or 4 bits: it is a seventh of what a decode step of an 8B int4 model reads (docs/benchmarks.md)."""

import jax
import jax.numpy as jnp

from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.rounding import min_max_grid, round_nearest
from jaxdeploy.weights.int8_matrix import Int8Matrix
from jaxdeploy.weights.quant_tensor import QuantTensor

GROUP_SIZES = (128, 64, 32, 16)
ROWS_AT_A_TIME = 8192


def with_rounded_head(params: dict, *, bits: int, tied: bool) -> dict:
    """The parameter tree with ``lm_head`` rounded to the nearest integers.

    Args:
        params: of a Decoder; a dense ``lm_head`` in it is taken out.
        bits: 16 changes nothing; 8 has a scale for each output, 4 a scale and zero point for each group of inputs.
        tied: the embedding is the output matrix. It stays as it is, the rounded copy comes beside it.

    Raises:
        ConfigError: 4 bits and a hidden size that no group size divides.
    """
    if bits == 16:
        return params
    head = params["embedding"] if tied else params["lm_head"]
    return {**params, "lm_head": _int8(head) if bits == 8 else _int4(head)}


def _int8(head: jax.Array) -> Int8Matrix:
    round_rows = jax.jit(Int8Matrix.of)
    parts = [round_rows(head[start : start + ROWS_AT_A_TIME]) for start in range(0, head.shape[0], ROWS_AT_A_TIME)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def _int4(head: jax.Array) -> QuantTensor:
    outputs, inputs = head.shape
    group_size = next((size for size in GROUP_SIZES if inputs % size == 0), None)
    if group_size is None:
        raise ConfigError(
            f"lm_head_bits=4 needs a hidden size that one of {GROUP_SIZES} divides, this model's is {inputs}"
        )
    scale_dtype = str(head.dtype) if head.dtype.itemsize == 2 else "bfloat16"

    @jax.jit
    def quantize(rows):
        w = rows.astype(jnp.float32)
        grid = min_max_grid(w, group_size, scale_dtype)
        q = round_nearest(w, grid).astype(jnp.uint8)
        return q[:, 0::2] | (q[:, 1::2] << 4), grid.scale.T.astype(scale_dtype), grid.zero.T.astype(jnp.uint8)

    parts = [quantize(head[start : start + ROWS_AT_A_TIME]) for start in range(0, outputs, ROWS_AT_A_TIME)]
    packed, scale, zero = zip(*parts, strict=True)
    return QuantTensor(
        jnp.concatenate(packed)[None],
        jnp.concatenate(scale, axis=1)[None],
        jnp.concatenate(zero, axis=1)[None],
        None,
        group_size,
    )
