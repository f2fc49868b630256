"""Shapes, errors and the choice of implementation of the heads' change of basis."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.head_basis import mosaic
from pallas_kernels.head_basis.reference import rope_change_basis_reference, turn_heads_reference
from pallas_kernels.implementation import run_implementation

MOST_TOKENS = 512
"""That the default takes the kernel for: those of a decode step.

With more it is a matter of matrix products, which are cuBLAS's.
"""


def turn_heads(
    x: Float[Array, "T N H"], matrix: Float[Array, "H H"], *, divisor: float = 1.0, implementation: str | None = None
) -> Float[Array, "T N H"]:
    """``x @ matrix / divisor``: all heads times one matrix.

    Args:
        x: heads of each token.
        matrix: of the dtype of x.
        divisor: of the product in float32; for matrices whose entries are exact (1 and -1) only before the division.
        implementation: name one of IMPLEMENTATIONS to fail if it can't; None takes the first that can and is worth it.

    Returns:
        The quotient, rounded to the dtype of x.

    Raises:
        ValueError: a matrix of another size, an unknown implementation or one that can't take the call.
    """
    if matrix.shape != (x.shape[-1],) * 2:
        raise ValueError(f"matrix {matrix.shape} for heads of {x.shape[-1]} values must be square, of that size")
    kernel, reference = (partial(f, divisor=divisor) for f in (mosaic.turn_heads, turn_heads_reference))
    reason = mosaic.reason_not(x, (matrix,))
    worth_it = x.shape[0] <= MOST_TOKENS
    return run_implementation(implementation, reason, kernel, reference, x, matrix, worth_it=worth_it)


def rope_change_basis(
    qkv: Float[Array, "T M H"],
    cos: Float[Array, "T F"],
    sin: Float[Array, "T F"],
    for_queries: Float[Array, "L K H H"],
    for_keys: Float[Array, "L K H H"],
    layer: Int32[Array, ""] | int,
    for_values: Float[Array, "H H"] | None,
    *,
    divisor: float = 1.0,
    implementation: str | None = None,
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
    """Queries and keys after RoPE times a matrix for each KV head, values times one matrix: one kernel in a decode step.

    Args:
        qkv: M = N + 2K heads of each token: queries (those of one KV head side by side), keys, values.
        cos, sin: float32, the angle of each pair (i, i + H/2), F = H/2.
        for_queries, for_keys: of all layers, in the dtype of ``qkv``.
        layer: which; may be traced.
        for_values: in the dtype of ``qkv``; None leaves values as they are.
        divisor: of the values' products, as in ``turn_heads``.
        implementation: as in ``turn_heads``.

    Returns:
        Queries, keys, values. RoPE's result is rounded to the dtype, then what is accumulated in float32.

    Raises:
        ValueError: shapes that don't fit each other, an unknown implementation or one that can't take the call.
    """
    kv_heads, size = for_keys.shape[1], qkv.shape[-1]
    if for_queries.shape != for_keys.shape or for_keys.shape[2:] != (size, size):
        raise ValueError(f"bases {for_queries.shape} and {for_keys.shape} must both be [L, K, {size}, {size}]")
    if qkv.shape[1] % kv_heads or qkv.shape[1] <= 2 * kv_heads:
        raise ValueError(
            f"{qkv.shape[1]} heads of q, k and v must be a multiple of {kv_heads} KV heads, at least 3 times"
        )
    if 2 * cos.shape[-1] != size or cos.dtype != jnp.float32:
        raise ValueError(f"cos and sin of {cos.dtype}{cos.shape} must be float32 of half of head_dim {size}")
    if for_values is not None and for_values.shape != (size, size):
        raise ValueError(f"matrix {for_values.shape} for heads of {size} values must be square, of that size")
    matrices = (for_queries, for_keys) if for_values is None else (for_queries, for_keys, for_values)
    reason = mosaic.reason_not(qkv, matrices)
    kernel, reference = (partial(f, divisor=divisor) for f in (mosaic.rope_change_basis, rope_change_basis_reference))
    arrays = qkv, cos, sin, for_queries, for_keys, jnp.asarray(layer, jnp.int32), for_values
    worth_it = qkv.shape[0] <= MOST_TOKENS
    return run_implementation(implementation, reason, kernel, reference, *arrays, worth_it=worth_it)
