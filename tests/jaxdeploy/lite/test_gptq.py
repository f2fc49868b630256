"""GPTQ against the algorithm written out, and its guards."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.lite.gptq import gptq_round, inverse_factor
from jaxdeploy.lite.rounding import dequantize, min_max_grid, nearest

OUTPUTS, INPUTS, GROUP = 12, 64, 16
RANDOM = np.random.RandomState(0)
X = RANDOM.standard_normal((300, 8)) @ RANDOM.standard_normal((8, INPUTS)) + 0.3 * RANDOM.standard_normal((300, INPUTS))
W = RANDOM.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
HESSIAN = (X.T @ X / 300).astype(np.float32)
SETTINGS = {"group_size": GROUP, "scale_dtype": "float16", "damping": 0.01}


def output_error(back: np.ndarray) -> float:
    return float((((back - W) @ X.T.astype(np.float32)) ** 2).sum())


def slow_gptq(w: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Column by column in float64, with the inverse Hessian updated as in the paper's equation (3); groups fitted at their turn."""
    w, back = w.astype(np.float64).copy(), np.zeros(w.shape)
    inverse = np.linalg.inv(hessian.astype(np.float64) + 0.01 * np.diag(hessian).mean() * np.eye(INPUTS))
    for k in range(INPUTS):
        if k % GROUP == 0:
            grid = min_max_grid(jnp.asarray(w[:, k : k + GROUP], jnp.float32), GROUP, "float16")
            scale, zero = np.asarray(grid.scale)[:, 0], np.asarray(grid.zero)[:, 0]
        q = np.clip(np.round(w[:, k] / scale) + zero, 0, 15)
        back[:, k] = (q - zero) * scale
        w[:, k:] -= np.outer((w[:, k] - back[:, k]) / inverse[k, k], inverse[k, k:])
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return back


def test_equals_the_slow_algorithm():
    q, grid = gptq_round(jnp.asarray(W), jnp.asarray(HESSIAN), **SETTINGS)
    found, expected = np.asarray(dequantize(q, grid)), slow_gptq(W, HESSIAN)
    # float32 may round a value on the border of two levels the other way, and what follows then differs.
    assert np.mean(np.abs(found - expected) > 1e-3) < 0.02
    assert output_error(found) == pytest.approx(output_error(expected), rel=0.05)


def test_output_error_is_far_below_rounding_to_nearest():
    plain = output_error(np.asarray(nearest(jnp.asarray(W), GROUP, "float16")))
    grid = min_max_grid(jnp.asarray(W), GROUP, "float16")
    order = jnp.argsort(-jnp.diagonal(jnp.asarray(HESSIAN)))
    for options in ({}, {"grid": grid}, {"grid": grid, "order": order}):
        q, found = gptq_round(jnp.asarray(W), jnp.asarray(HESSIAN), **SETTINGS, **options)
        assert output_error(np.asarray(dequantize(q, found))) < 0.5 * plain, options


def test_act_order_groups_follow_the_order():
    order = jnp.argsort(-jnp.diagonal(jnp.asarray(HESSIAN)))
    q, grid = gptq_round(jnp.asarray(W), jnp.asarray(HESSIAN), **SETTINGS, order=order)
    back = np.zeros_like(W)
    back[:, np.asarray(order)] = np.asarray(dequantize(q, grid))
    plain = output_error(np.asarray(nearest(jnp.asarray(W), GROUP, "float16")))
    assert output_error(back) < 0.5 * plain


def test_the_factor_is_that_of_the_inverse():
    u = np.asarray(inverse_factor(jnp.asarray(HESSIAN), 0.01), np.float64)
    damped = HESSIAN + 0.01 * np.diag(HESSIAN).mean() * np.eye(INPUTS)
    assert np.abs(np.tril(u, -1)).max() == 0
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(INPUTS), atol=2e-3)


@pytest.mark.parametrize(
    "hessian",
    [np.zeros((INPUTS, INPUTS)), np.ones((INPUTS, INPUTS)), np.outer(X[0], X[0]), 1e-12 * HESSIAN],
    ids=["nothing", "one direction", "one token", "tiny"],
)
def test_few_tokens_and_dead_channels_give_no_nan(hessian: np.ndarray):
    hessian = hessian.astype(np.float32)
    hessian[5] = hessian[:, 5] = 0
    q, grid = gptq_round(jnp.asarray(W), jnp.asarray(hessian), **SETTINGS)
    back = np.asarray(dequantize(q, grid))
    assert np.isfinite(back).all()
    assert np.abs(back[:, 5] - W[:, 5]).max() < float(grid.scale.max()), "a dead channel is just rounded"


def test_one_group_per_row():
    q, grid = gptq_round(
        jnp.asarray(np.tile(W, 5)),
        jnp.asarray(np.kron(np.eye(5, dtype=np.float32), HESSIAN)),
        **{**SETTINGS, "group_size": 320},
    )
    assert grid.scale.shape == (OUTPUTS, 1)
    assert np.abs(np.asarray(dequantize(q, grid))[:, :INPUTS] - W).max() < 3 * float(grid.scale.max())
