"""The contract of the heads' change of basis: head times matrix, accumulated in float32, RoPE before it where there is any."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pallas_kernels.kv_write.reference import rope_qkv


def turn_heads_reference(
    x: Float[Array, "*B H"], matrix: Float[Array, "H H"], *, divisor: float
) -> Float[Array, "*B H"]:
    """``x @ matrix / divisor`` in the dtype of x, product and quotient in float32."""
    turned = lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return (turned / divisor).astype(x.dtype)


def change_basis(
    x: Float[Array, "T N H"], bases: Float[Array, "L K H H"], layer: Int32[Array, ""]
) -> Float[Array, "T N H"]:
    """Every head times its KV head's matrix of one layer, in the dtype of x, accumulated in float32.

    Args:
        x: keys (N = K), or queries, those of one KV head side by side.
        bases: of all layers.
        layer: which.
    """
    tokens, heads, size = x.shape
    matrix = lax.dynamic_index_in_dim(bases, layer, 0, keepdims=False)
    grouped = x.reshape(tokens, len(matrix), heads // len(matrix), size)
    out = lax.platform_dependent(grouped, matrix.astype(x.dtype), cpu=_multiply_wide, default=_multiply)
    return out.reshape(x.shape).astype(x.dtype)


def _multiply(x, matrices):
    return jnp.einsum("tkgh,khi->tkgi", x, matrices, preferred_element_type=jnp.float32)


def _multiply_wide(x, matrices):
    """The same sums: XLA's CPU backend (jax 0.12) runs no batched product of bfloat16 that is accumulated in float32."""
    return _multiply(x.astype(jnp.float32), matrices.astype(jnp.float32))


def rope_change_basis_reference(
    qkv: Float[Array, "T M H"],
    cos: Float[Array, "T F"],
    sin: Float[Array, "T F"],
    for_queries: Float[Array, "L K H H"],
    for_keys: Float[Array, "L K H H"],
    layer: Int32[Array, ""],
    for_values: Float[Array, "H H"] | None,
    *,
    divisor: float,
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
    """Queries and keys after RoPE in their bases; values by ``turn_heads_reference``, as they are for None."""
    q, k, v = rope_qkv(qkv, cos, sin, for_keys.shape[1])
    k, q = change_basis(k, for_keys, layer), change_basis(q, for_queries, layer)
    return q, k, v if for_values is None else turn_heads_reference(v, for_values, divisor=divisor)
