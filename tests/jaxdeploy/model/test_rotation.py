"""Rotations of keys and values: attention stays what it is, and loses less when it is rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.model.rotation import (
    change_basis,
    key_bases,
    plain_bases,
    rotate_heads,
    rotation_matrix,
    second_moments,
)
from pallas_kernels.kv_write.reference import dequantize_heads, quantize_heads


@pytest.mark.parametrize("size", [2, 16, 24, 64, 80, 96, 128, 256])
def test_the_matrix_is_its_own_inverse_with_a_constant_first_row(size):
    matrix = rotation_matrix(size)
    np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    np.testing.assert_allclose(matrix[0], np.full(size, size**-0.5), rtol=1e-12)
    if size & (size - 1) == 0:
        np.testing.assert_allclose(np.abs(matrix), size**-0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"), [(128, "float32", 1e-5), (96, "float32", 1e-5), (128, "bfloat16", 0.02)]
)
def test_turning_twice_is_not_turning(size, dtype, tolerance):
    x = jax.random.normal(jax.random.key(0), (3, 5, size)).astype(dtype)
    turned = rotate_heads(x)
    assert turned.dtype == x.dtype
    assert float(jnp.abs(turned - x).max()) > 1
    error = jnp.linalg.norm((rotate_heads(turned) - x).astype(jnp.float32)) / jnp.linalg.norm(x.astype(jnp.float32))
    assert float(error) < tolerance


def moments(x):
    return np.asarray(second_moments(x, 2))


def heads(heads_of: int, seed: int, tokens: int = 400, size: int = 32) -> jax.Array:
    """Heads with a mean, channels of very different size and correlations."""
    random = np.random.RandomState(seed)
    mix = random.standard_normal((heads_of, size, size)) / np.sqrt(size)
    channels = np.exp(random.standard_normal((heads_of, 1, size)))
    x = np.einsum("tnh,nhi->tni", random.standard_normal((tokens, heads_of, size)), mix) * channels[:, 0]
    return jnp.asarray(x + 2 * channels[:, 0], jnp.float32)


def score_error(q: jax.Array, k: jax.Array, stored: jax.Array, asked: jax.Array) -> float:
    """Squared error of all q.k, as a share of their square, when keys are stored in 4 bits."""
    restored = dequantize_heads(*quantize_heads(stored, bits=4), bits=4)
    queries = asked.reshape(len(q), k.shape[1], -1, k.shape[2])
    found = jnp.einsum("tkgh,skh->kgts", queries, restored)
    exact = jnp.einsum("tkgh,skh->kgts", q.reshape(queries.shape), k)
    centred = exact - exact.mean(axis=-1, keepdims=True)  # what softmax sees
    return float(jnp.sum(jnp.square(found - exact)) / jnp.sum(jnp.square(centred)))


def test_key_bases_keep_products_and_lose_less():
    q, k, layer = heads(6, 0), heads(2, 1), jnp.int32(0)
    for_keys, for_queries = (jnp.asarray(basis, jnp.float32)[None] for basis in key_bases(moments(k), moments(q)))
    stored, asked = change_basis(k, for_keys, layer), change_basis(q, for_queries, layer)
    exact = jnp.einsum("tkgh,tkh->tkg", q.reshape(-1, 2, 3, 32), k)
    found = jnp.einsum("tkgh,tkh->tkg", asked.reshape(-1, 2, 3, 32), stored)
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=2e-4 * float(jnp.abs(exact).max()))
    plain = plain_bases(1, 2, 32, "float32")
    turned = score_error(q, k, change_basis(k, plain, layer), change_basis(q, plain, layer))
    fitted = score_error(q, k, stored, asked)
    assert fitted < turned / 3 < score_error(q, k, k, q), (fitted, turned)


def test_bases_balance_what_keys_and_queries_weigh():
    """Both second moments become the same matrix, constant but for the first axis' share, which lies on the vector of ones."""
    q, k = heads(2, 2), heads(2, 3)
    for_keys, for_queries = key_bases(moments(k), moments(q))
    keys = np.swapaxes(for_keys, 1, 2) @ moments(k) @ for_keys
    queries = np.swapaxes(for_queries, 1, 2) @ moments(q) @ for_queries
    ratio = np.trace(queries, axis1=1, axis2=2) / np.trace(keys, axis1=1, axis2=2)
    np.testing.assert_allclose(ratio, 1, rtol=0.2)
    spread = np.diagonal(keys, axis1=1, axis2=2)
    np.testing.assert_allclose(spread / spread.mean(axis=1, keepdims=True), 1, atol=0.2)
    ones = np.full(32, 32**-0.5)
    assert np.all(ones @ keys @ ones > 0.5 * np.trace(keys, axis1=1, axis2=2))


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_a_head_without_information_has_a_basis(value):
    for_keys, for_queries = key_bases(np.full((2, 16, 16), value), np.full((2, 16, 16), value))
    np.testing.assert_allclose(
        for_keys @ np.swapaxes(for_queries, 1, 2), np.broadcast_to(np.eye(16), (2, 16, 16)), atol=1e-12
    )
