"""Rotations that make keys and values easy to quantize and leave attention as it is.

A head's vector is quantized with one scale, so a few large channels cost all the others their precision. Turned by an orthogonal
matrix R whose entries are all of one size, every coordinate carries its share of every channel.

Values: ``v R`` is stored, and the attention's output is turned back, for ``sum_t p_t (v_t R) R^T = sum_t p_t v_t``.

Keys: ``k A`` is stored and ``q A^-T`` asks, for ``(k A) . (q A^-T) = k . q``. R alone is such an A; a better one knows the second
moments of keys and queries (``key_bases``). Its first axis, along which heads vary most (with biases or attention sinks it is
near the mean key), becomes the vector of ones: a constant added to a head is what the stored offset says exactly, in any precision.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64

from pallas_kernels.head_basis.reference import change_basis, turn_heads_reference

__all__ = [
    "change_basis",
    "key_bases",
    "plain_bases",
    "rotate_heads",
    "rotation_matrix",
    "second_moments",
    "whole_rotation",
]

REGULARIZATION = 0.1
"""Share of the mean eigenvalue that is added to moments, which few tokens leave near singular."""


def rotation_matrix(size: int) -> Float64[np.ndarray, "H H"]:
    """Orthogonal, symmetric (so its own inverse), first row constant, all entries of one size where ``size`` is a power of two.

    Sylvester's Hadamard matrix of the largest power of two that divides ``size``; what is left of it, an odd number, is mixed by
    the discrete Hartley transform ``cos(2 pi i j / n) + sin(2 pi i j / n)``, which has the same three properties.
    """
    odd = size
    while odd % 2 == 0:
        odd //= 2
    angles = 2 * np.pi * np.outer(np.arange(odd), np.arange(odd)) / odd
    matrix = (np.cos(angles) + np.sin(angles)) / math.sqrt(odd)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / math.sqrt(2)
    return matrix


def whole_rotation(size: int, dtype: str) -> tuple[Float[Array, "H H"], float]:
    """``rotation_matrix`` times the root of its size, and that root, to divide products by.

    Entries of size 1 are exact in bfloat16; 1 / sqrt(H) mostly is not, and comes after.
    """
    root = math.sqrt(size)
    return jnp.asarray(rotation_matrix(size) * root, dtype), root


def rotate_heads(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """``x @ rotation_matrix(H)`` in the dtype of x, accumulated in float32; twice gives x."""
    matrix, root = whole_rotation(x.shape[-1], x.dtype.name)
    return turn_heads_reference(x, matrix, divisor=root)


def second_moments(x: Float[Array, "T N H"], kv_heads: int) -> Float[Array, "K H H"]:
    """Mean of ``x x^T`` over tokens and the heads of a KV head, float32."""
    tokens, heads, size = x.shape
    grouped = x.reshape(tokens, kv_heads, heads // kv_heads, size)
    products = jnp.einsum(
        "tkgh,tkgi->khi", grouped, grouped, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return products / (tokens * heads // kv_heads)


def key_bases(
    keys: Float[np.ndarray, "*B H H"], queries: Float[np.ndarray, "*B H H"]
) -> tuple[Float64[np.ndarray, "*B H H"], Float64[np.ndarray, "*B H H"]]:
    """The bases that lose least of q.k when keys are rounded with one step for all coordinates.

    Rounding adds white noise of a variance that goes with the key's size, so what counts is ``tr(A^T Ck A) tr(A^-1 Cq A^-T)``
    for second moments Ck, Cq. It is least where both products are the same diagonal matrix, as in the balanced realizations of
    control theory (B. C. Moore, 1981): with ``Ck = L L^T`` and ``L^T Cq L = U S^2 U^T``, ``A = L^-T U S^(1/2)``. The rotation
    after it spreads the axes evenly and puts the largest on the vector of ones.

    Args:
        keys, queries: second moments, after RoPE.

    Returns:
        (A, A^-T): what keys and what queries are multiplied by, from the right.
    """
    rotation = rotation_matrix(keys.shape[-1])
    lower = np.linalg.cholesky(_regular(keys))
    spectrum, axes = np.linalg.eigh(np.swapaxes(lower, -1, -2) @ _regular(queries) @ lower)
    spectrum, axes = spectrum[..., None, ::-1], axes[..., ::-1]
    balance = np.maximum(spectrum, spectrum[..., :1] * 1e-12) ** 0.25
    for_keys = np.linalg.solve(np.swapaxes(lower, -1, -2), axes * balance)
    return for_keys @ rotation, lower @ (axes / balance) @ rotation


def _regular(moments: Float[np.ndarray, "*B H H"]) -> Float64[np.ndarray, "*B H H"]:
    """With REGULARIZATION on the diagonal; the unit matrix where a head is all zeros, or has values that are no numbers."""
    wide = np.asarray(moments, np.float64)
    wide = np.where(np.isfinite(wide).all(axis=(-1, -2), keepdims=True), wide, 0.0)
    mean = np.trace(wide, axis1=-2, axis2=-1)[..., None, None] / wide.shape[-1]
    return wide + np.where(mean > 0, REGULARIZATION * mean, 1.0) * np.eye(wide.shape[-1])


def plain_bases(layers: int, kv_heads: int, size: int, dtype: str) -> Float[jax.Array, "L K H H"]:
    """``rotation_matrix`` for every head: the bases of keys and of queries before anything is known about them."""
    return jnp.broadcast_to(jnp.asarray(rotation_matrix(size), dtype), (layers, kv_heads, size, size))
