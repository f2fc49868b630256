"""The output matrix in int4: at small batches reading it is a seventh of a decode step of an 8B int4 model (docs/benchmarks.md)."""

import jax
import jax.numpy as jnp

from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.rounding import min_max_grid, round_nearest
from jaxdeploy.weights.quant_tensor import QuantTensor

GROUP_SIZES = (128, 64, 32, 16)
ROWS_AT_A_TIME = 8192


def with_int4_head(params: dict, *, tied: bool) -> dict:
    """The parameter tree with ``lm_head`` rounded to the nearest int4 in groups, a scale and zero point each.

    Args:
        params: of a Decoder; a dense ``lm_head`` in it is taken out.
        tied: the embedding is the output matrix. It stays as it is, the int4 copy comes beside it.

    Raises:
        ConfigError: a hidden size that no group size divides.
    """
    head = params["embedding"] if tied else params["lm_head"]
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
    tensor = QuantTensor(
        jnp.concatenate(packed)[None],
        jnp.concatenate(scale, axis=1)[None],
        jnp.concatenate(zero, axis=1)[None],
        None,
        group_size,
    )
    return {**params, "lm_head": tensor}
