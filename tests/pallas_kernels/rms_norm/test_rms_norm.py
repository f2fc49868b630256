"""The residual add with norm: the reference against numpy, and what the interface refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from pallas_kernels.rms_norm.api import add_rms_norm

EPS = 1e-5


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_agrees_with_numpy(dtype, adds):
    x, delta = (jax.random.normal(jax.random.key(i), (5, 24), jnp.float32).astype(dtype) for i in range(2))
    weight = jnp.arange(1, 49, dtype=dtype).reshape(2, 24)
    total, normed = add_rms_norm(x, delta if adds else None, weight, jnp.int32(1), eps=EPS)
    exact = np.asarray(x, np.float64) + (np.asarray(delta, np.float64) if adds else 0.0)
    expected = exact / np.sqrt(np.mean(exact**2, axis=-1, keepdims=True) + EPS) * np.arange(25, 49)
    step = float(jnp.finfo(dtype).eps)
    assert total.dtype == normed.dtype == dtype
    np.testing.assert_allclose(np.asarray(total, np.float64), exact, rtol=step, atol=0)
    # The sum, the product with the root and the one with the weight are rounded; a sum near 0 has lost no more than its own step.
    np.testing.assert_allclose(np.asarray(normed, np.float64), expected, rtol=4 * step, atol=0)


def test_layer_is_traced():
    x, weight = jnp.ones((1, 8)), jnp.arange(32.0).reshape(4, 8)
    run = jax.jit(lambda layer: add_rms_norm(x, None, weight, layer, eps=0.0)[1])
    assert [float(run(layer)[0, 0]) for layer in range(4)] == [0.0, 8.0, 16.0, 24.0]


@pytest.mark.parametrize(
    ("x", "delta", "weight", "implementation", "message"),
    [
        ((2, 16), (2, 8), (1, 16), None, r"delta \(2, 8\)"),
        ((2, 16), (2, 16), (1, 8), None, r"weight \(1, 8\)"),
        ((2, 16), (2, 16), (1, 16), "triton", "implementation='triton' is unknown"),
        ((2, 20), (2, 20), (1, 20), "mosaic", "size=20 must be a multiple of 8"),
        ((2, 40000), None, (1, 40000), "mosaic", "up to 32768"),
    ],
)
def test_says_what_it_cannot_take(monkeypatch, x, delta, weight, implementation, message):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # else it is the first to say so
    given = [None if shape is None else jnp.zeros(shape, jnp.bfloat16) for shape in (x, delta, weight)]
    with pytest.raises(ValueError, match=message):
        add_rms_norm(*given, 0, eps=EPS, implementation=implementation)


def test_float32_has_no_kernel():
    x = jnp.zeros((1, 8))
    with pytest.raises(ValueError, match="float32, float32, float32 must all be bfloat16"):
        add_rms_norm(x, x, x, 0, eps=EPS, implementation="mosaic")
