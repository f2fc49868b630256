"""The int4 quantizer against its formula, and at its edges."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.lite.rounding import dequantize, fit_scale, min_max_grid, nearest, round_nearest

GROUP = 16


def weights(seed: int = 0, outputs: int = 8, inputs: int = 48) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((outputs, inputs)).astype(np.float32) / 10


def test_equals_the_formula_written_out():
    w = weights()
    grid = min_max_grid(jnp.asarray(w), GROUP, "float16")
    q = np.asarray(round_nearest(jnp.asarray(w), grid))
    for n in range(8):
        for g in range(3):
            part = w[n, g * GROUP : (g + 1) * GROUP]
            scale = np.float32(np.float16((part.max() - part.min()) / np.float32(15)))
            zero = np.clip(-np.round(part.min() / scale), 0, 15)
            assert grid.scale[n, g] == scale
            assert grid.zero[n, g] == zero
            np.testing.assert_array_equal(
                q[n, g * GROUP : (g + 1) * GROUP], np.clip(np.round(part / scale) + zero, 0, 15)
            )


def test_error_is_at_most_a_step():
    w = jnp.asarray(weights(1))
    grid = min_max_grid(w, GROUP, "bfloat16")
    step = np.repeat(np.asarray(grid.scale), GROUP, axis=1)
    # Half a step from rounding the weight, half a step from rounding the zero point at the range's ends.
    assert (np.abs(np.asarray(nearest(w, GROUP, "bfloat16")) - np.asarray(w)) <= 1.06 * step).all()


@pytest.mark.parametrize("value", [0.0, 0.25, -0.25, 1e-9, -1e-9])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_constant_groups(value: float, dtype: str):
    w = jnp.full((4, 32), value, jnp.float32)
    back = np.asarray(nearest(w, GROUP, dtype))
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back, value, rtol=5e-3, atol=1e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_groups_of_one_sign_fit(sign: int):
    w = sign * (jnp.asarray(np.abs(weights(2))) + 1.0)
    grid = min_max_grid(w, GROUP, "float16")
    back = np.asarray(dequantize(round_nearest(w, grid), grid))
    assert np.abs(back - np.asarray(w)).max() <= 0.55 * float(grid.scale.max()), (
        "the range must reach from 0 to the weights"
    )


def test_zero_points_of_gptq_start_at_one():
    grid = min_max_grid(jnp.abs(jnp.asarray(weights(3))), GROUP, "float16", lowest_zero=1)
    assert float(grid.zero.min()) == 1
    assert float(min_max_grid(jnp.abs(jnp.asarray(weights(3))), GROUP, "float16").zero.max()) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_are_exact_in_the_checkpoints_dtype(dtype: str):
    scale = fit_scale(jnp.asarray(-np.abs(weights(4))), jnp.asarray(np.abs(weights(5))), dtype)
    np.testing.assert_array_equal(np.asarray(scale), np.asarray(scale.astype(dtype).astype(jnp.float32)))
