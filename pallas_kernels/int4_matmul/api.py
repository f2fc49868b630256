"""Shapes, errors and the choice of implementation of the int4 matmul."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt8

from pallas_kernels.int4_matmul.reference import int4_matmul_reference

IMPLEMENTATIONS = ("reference",)


def int4_matmul(
    x: Float[Array, "*batch K"],
    packed: UInt8[Array, "L N Kh"],
    scale: Float[Array, "L Kg N"],
    zero: UInt8[Array, "L Kg N"],
    layer: Int32[Array, ""] | int,
    *,
    group_size: int,
    implementation: str | None = None,
) -> Float[Array, "*batch N"]:
    """Multiply activations with layer ``layer`` of a stack of packed int4 matrices.

    Args:
        x: activations, float32, bfloat16 or float16.
        packed: q in 0..15, two to a byte, input 2j in the low nibble of byte j.
        scale: one per group of ``group_size`` inputs and output.
        zero: zero points 0..15.
        layer: which matrix of the stack; may be traced.
        group_size: G; must divide K.
        implementation: name one of IMPLEMENTATIONS to fail if it can't; None takes the first that can.

    Returns:
        ``x @ w[layer].T`` in the dtype of x.

    Raises:
        ValueError: shapes that don't fit each other, or an unknown implementation.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"{implementation=} is unknown; there are {IMPLEMENTATIONS}")
    k, n = x.shape[-1], packed.shape[-2]
    if 2 * packed.shape[-1] != k:
        raise ValueError(f"x has {k} inputs but the packed weight holds {2 * packed.shape[-1]}")
    if group_size < 1 or k % group_size:
        raise ValueError(f"{k=} inputs must be divisible by {group_size=}")
    groups = (packed.shape[0], k // group_size, n)
    if scale.shape != groups or zero.shape != groups:
        raise ValueError(f"scale and zero must be [L, Kg, N] = {groups}, found {scale.shape} and {zero.shape}")

    def of_layer(stack):
        return lax.dynamic_index_in_dim(stack, jnp.asarray(layer, jnp.int32), 0, keepdims=False)

    out = int4_matmul_reference(
        x.reshape(-1, k), of_layer(packed), of_layer(scale), of_layer(zero), group_size=group_size
    )
    return out.reshape(*x.shape[:-1], n)
