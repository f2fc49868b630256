"""Shapes, errors and the choice of implementation of the residual add with norm."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.implementation import run_implementation
from pallas_kernels.rms_norm import mosaic
from pallas_kernels.rms_norm.reference import add_rms_norm_reference

MOST_TOKENS = 512
"""That the default takes the kernel for: those of a decode step.

With more the bytes count, not the latency, and XLA fuses add and norm with what makes them.
"""


def add_rms_norm(
    x: Float[Array, "T D"],
    delta: Float[Array, "T D"] | None,
    weight: Float[Array, "L D"],
    layer: Int32[Array, ""] | int,
    *,
    eps: float,
    implementation: str | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
    """``x + delta``, and ``rms_norm(x + delta) * weight[layer]``.

    Args:
        x: the residual stream.
        delta: what is to be added to it; None for nothing.
        weight: of all layers.
        layer: which layer's weight; may be traced.
        eps: added to the mean of squares.
        implementation: name one of IMPLEMENTATIONS to fail if it can't; None takes the first that can and is worth it.

    Returns:
        The sum, rounded to the dtype of x, and the norm of that.

    Raises:
        ValueError: shapes that don't fit each other, an unknown implementation or one that can't take the call.
    """
    if (delta is not None and delta.shape != x.shape) or weight.shape[1:] != x.shape[1:]:
        shapes = f"x {x.shape}, delta {None if delta is None else delta.shape}, weight {weight.shape}"
        raise ValueError(f"{shapes}: delta must be shaped as x, weight [layers, {x.shape[-1]}]")
    reason = mosaic.reason_not(x, delta, weight)
    arrays = x, delta, weight, jnp.asarray(layer, jnp.int32)
    kernel, reference = (partial(f, eps=eps) for f in (mosaic.add_rms_norm, add_rms_norm_reference))
    worth_it = x.shape[0] <= MOST_TOKENS
    return run_implementation(implementation, reason, kernel, reference, *arrays, worth_it=worth_it)
