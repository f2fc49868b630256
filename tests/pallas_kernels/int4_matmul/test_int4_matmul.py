from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int4_matmul.api import int4_matmul
from pallas_kernels.int4_matmul.reference import dequantize, unpack_int4

LAYERS, K, N = 3, 256, 24


def make_weights(group_size: int) -> tuple[np.ndarray, jax.Array, jax.Array]:
    """Random q [L, N, K], scale [L, Kg, N] and zero [L, Kg, N]; every value of q, and the zero points 0 and 15, occur."""
    rng = np.random.default_rng(0)
    q = rng.integers(0, 16, (LAYERS, N, K), np.uint8)
    groups = (LAYERS, K // group_size, N)
    zero = rng.integers(0, 16, groups, np.uint8)
    zero[..., 0], zero[..., 1] = 0, 15
    return q, jnp.asarray(rng.uniform(0.01, 0.1, groups), jnp.float32), jnp.asarray(zero)


def pack(q: np.ndarray) -> jax.Array:
    packed = np.zeros((*q.shape[:-1], q.shape[-1] // 2), np.uint8)
    for j in range(packed.shape[-1]):
        packed[..., j] = q[..., 2 * j] + 16 * q[..., 2 * j + 1]
    return jnp.asarray(packed)


def exact_weights(q: np.ndarray, scale: jax.Array, zero: jax.Array, group_size: int) -> np.ndarray:
    """w of one layer in float64, one input at a time."""
    scales, zeros, w = np.asarray(scale, np.float64), np.asarray(zero, np.float64), np.zeros(q.shape)
    for k in range(q.shape[1]):
        group = k // group_size
        w[:, k] = (q[:, k] - zeros[group]) * scales[group]
    return w


def test_low_nibble_comes_first():
    packed = jnp.array([[0x10, 0x32, 0xFE]], jnp.uint8)
    np.testing.assert_array_equal(unpack_int4(packed), [[0, 1, 2, 3, 14, 15]])


def test_dequantize_is_exact():
    # Scales that are powers of two leave nothing to round.
    q, scale, zero = make_weights(64)
    scale = jnp.exp2(jnp.round(jnp.log2(scale)))
    w = dequantize(pack(q[0]), scale[0], zero[0], group_size=64)
    assert w.dtype == jnp.float32
    np.testing.assert_array_equal(w, exact_weights(q[0], scale[0], zero[0], 64))


# K as group size is one scale per output ("per channel").
@pytest.mark.parametrize("group_size", [32, 64, 128, K])
def test_equals_float64_in_every_layer(group_size):
    q, scale, zero = make_weights(group_size)
    x = np.random.default_rng(1).standard_normal((5, K), np.float32)
    multiply = jax.jit(partial(int4_matmul, group_size=group_size))
    for layer in range(LAYERS):
        expected = x.astype(np.float64) @ exact_weights(q[layer], scale[layer], zero[layer], group_size).T
        out = multiply(x, pack(q), scale, zero, jnp.int32(layer))
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2**-8), ("float16", 2**-11), ("float32", 2**-22)])
@pytest.mark.parametrize("rows", [1, 7])
def test_rounds_weights_and_result_to_the_dtype_of_x(dtype, unit, rows):
    q, scale, zero = make_weights(128)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((rows, K)), dtype)
    stored = scale.astype(dtype)  # checkpoints keep scales in the model's dtype
    out = int4_matmul(x, pack(q), stored, zero, 1, group_size=128)
    assert out.dtype == dtype
    w = exact_weights(q[1], stored[1], zero[1], 128)
    x = np.asarray(x, np.float64)
    # One rounding for each weight, added up over the inputs, and one for the result.
    bound = unit * (np.abs(x) @ np.abs(w).T + np.abs(x @ w.T))
    assert np.all(np.abs(np.asarray(out, np.float64) - x @ w.T) <= bound)


def test_any_number_of_leading_axes():
    q, scale, zero = make_weights(64)
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 3, K), np.float32))
    out = int4_matmul(x, pack(q), scale, zero, 2, group_size=64)
    flat = int4_matmul(x.reshape(6, K), pack(q), scale, zero, 2, group_size=64)
    np.testing.assert_array_equal(out, flat.reshape(2, 3, N))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": jnp.zeros((1, K - 2))}, r"x has 254 inputs but the packed weight holds 256"),
        ({"group_size": 96}, r"k=256 inputs must be divisible by group_size=96"),
        ({"group_size": 0}, r"k=256 inputs must be divisible by group_size=0"),
        ({"group_size": -1}, r"k=256 inputs must be divisible by group_size=-1"),
        ({"group_size": 32}, r"must be \[L, Kg, N\] = \(3, 8, 24\), found \(3, 4, 24\) and \(3, 4, 24\)"),
        ({"implementation": "cutlass"}, r"implementation='cutlass' is unknown; there are \('reference',"),
    ],
)
def test_errors_name_the_values(changes, message):
    q, scale, zero = make_weights(64)
    arguments = {"x": jnp.zeros((1, K)), "packed": pack(q), "scale": scale, "zero": zero, "layer": 0}
    with pytest.raises(ValueError, match=message):
        int4_matmul(**(arguments | {"group_size": 64} | changes))
