"""The heads' change of basis: the reference against numpy, and what the interface refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from pallas_kernels.head_basis.api import rope_change_basis, turn_heads
from pallas_kernels.head_basis.reference import change_basis

TOKENS, HEADS, KV_HEADS, SIZE, LAYERS, LAYER = 3, 4, 2, 8, 3, 1


def normal(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def given() -> list:
    angles = normal(1, TOKENS, SIZE // 2)
    bases = [normal(seed, LAYERS, KV_HEADS, SIZE, SIZE) for seed in (2, 3)]
    qkv = normal(0, TOKENS, HEADS + 2 * KV_HEADS, SIZE)
    return [qkv, jnp.cos(angles), jnp.sin(angles), *bases, LAYER, normal(4, SIZE, SIZE)]


@pytest.mark.parametrize("turns_values", [True, False])
def test_agrees_with_numpy(turns_values):
    arguments = given()
    if not turns_values:
        arguments[-1] = None
    found = rope_change_basis(*arguments, divisor=2.5)
    x, cos, sin, for_queries, for_keys = (np.asarray(a, np.float64) for a in arguments[:5])
    turned = x.copy()
    for i in range(SIZE // 2):
        c, s, a, b = cos[:, None, i], sin[:, None, i], x[..., i], x[..., i + SIZE // 2]
        turned[..., i], turned[..., i + SIZE // 2] = a * c - b * s, b * c + a * s
    q = [turned[:, head] @ for_queries[LAYER, head // (HEADS // KV_HEADS)] for head in range(HEADS)]
    k = [turned[:, HEADS + head] @ for_keys[LAYER, head] for head in range(KV_HEADS)]
    v = x[:, HEADS + KV_HEADS :]
    v = v @ np.asarray(arguments[-1], np.float64) / 2.5 if turns_values else v
    for part, expected in zip(found, (np.stack(q, 1), np.stack(k, 1), v), strict=True):
        np.testing.assert_allclose(np.asarray(part, np.float64), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_turn_heads_divides_what_it_multiplied(dtype):
    x, matrix = normal(0, 2, 3, 4, dtype=dtype), normal(1, 4, 4, dtype=dtype)
    turned = turn_heads(x, matrix, divisor=4.0)
    assert turned.dtype == dtype
    expected = np.asarray(x, np.float64) @ np.asarray(matrix, np.float64) / 4
    np.testing.assert_allclose(np.asarray(turned, np.float64), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-6)


def test_layer_is_traced():
    arguments = given()
    run = jax.jit(lambda layer: rope_change_basis(*arguments[:5], layer, None))
    expected = rope_change_basis(*arguments[:5], 2, None)
    for a, b, other in zip(run(2), expected, run(0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert b.shape[1] == KV_HEADS or not np.allclose(a, other)


@pytest.mark.parametrize(
    ("change", "implementation", "message"),
    [
        ({0: normal(0, TOKENS, 7, SIZE)}, None, "7 heads of q, k and v must be a multiple of 2"),
        ({0: normal(0, TOKENS, 4, SIZE)}, None, "4 heads of q, k and v"),
        ({1: normal(0, TOKENS, 3)}, None, r"cos and sin of float32\(3, 3\)"),
        ({3: normal(0, LAYERS, 1, SIZE, SIZE)}, None, r"bases \(3, 1, 8, 8\)"),
        ({6: normal(0, SIZE, 4)}, None, r"matrix \(8, 4\)"),
        ({}, "triton", "implementation='triton' is unknown"),
        ({}, "mosaic", "float32, float32, float32, float32 must all be bfloat16"),
    ],
)
def test_says_what_it_cannot_take(monkeypatch, change, implementation, message):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # else it is the first to say so
    arguments = [change.get(i, a) for i, a in enumerate(given())]
    with pytest.raises(ValueError, match=message):
        rope_change_basis(*arguments, implementation=implementation)


def test_the_kernel_takes_heads_of_two_sizes(monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)
    x, matrix = normal(0, 1, 2, 96, dtype=jnp.bfloat16), normal(1, 96, 96, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"head_dim=96 must be one of \(64, 128\)"):
        turn_heads(x, matrix, implementation="mosaic")
    with pytest.raises(ValueError, match=r"matrix \(64, 64\) for heads of 96"):
        turn_heads(x, matrix[:64, :64])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_dtype_runs_on_a_cpu(dtype):
    x = jax.random.normal(jax.random.key(0), (3, 8, 16)).astype(dtype)
    bases = jax.random.normal(jax.random.key(1), (2, 4, 16, 16)).astype(dtype)
    out = jax.jit(change_basis)(x, bases, jnp.int32(1))
    assert out.dtype == dtype
    wide = np.asarray(x, np.float64).reshape(3, 4, 2, 16)
    expected = np.einsum("tkgh,khi->tkgi", wide, np.asarray(bases[1], np.float64)).reshape(3, 8, 16)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=1e-2, atol=1e-1)
