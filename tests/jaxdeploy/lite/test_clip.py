"""The clip search: the least error of each group's output, by trying."""

import jax.numpy as jnp
import numpy as np

from jaxdeploy.lite.clip import RATIOS, SMALLEST, group_products, search_ranges
from jaxdeploy.lite.rounding import dequantize, fit_grid, group_range, round_nearest

GROUP = 16


def test_equals_trying_every_ratio_on_the_inputs():
    random = np.random.RandomState(0)
    w = random.standard_t(3, (6, 48)).astype(np.float32)
    x = random.standard_normal((200, 48)).astype(np.float32)
    found = np.asarray(search_ranges(jnp.asarray(w), jnp.asarray(x.T @ x), GROUP, "float16"))
    low, high = group_range(jnp.asarray(w), GROUP)

    def errors(ratio: float) -> np.ndarray:
        grid = fit_grid(low * ratio, high * ratio, "float16")
        change = np.asarray(dequantize(round_nearest(jnp.asarray(w), grid), grid)) - w
        outputs = np.einsum("tgi,ngi->tng", x.reshape(200, 3, GROUP), change.reshape(6, 3, GROUP))
        return (outputs**2).sum(axis=0)

    tried = np.array([errors(1 - (1 - SMALLEST) * step / RATIOS) for step in range(RATIOS + 1)])
    chosen = np.rint((1 - found) / (1 - SMALLEST) * RATIOS).astype(int)
    least = np.take_along_axis(tried, chosen[None], axis=0)[0]
    np.testing.assert_array_less(least, 1.001 * tried.min(axis=0))
    assert (chosen > 0).any(), "outliers are worth clipping somewhere"


def test_channels_that_are_never_used_keep_the_whole_range():
    w = jnp.asarray(np.random.RandomState(1).standard_normal((3, 32)), jnp.float32)
    np.testing.assert_array_equal(search_ranges(w, jnp.zeros((32, 32)), GROUP, "bfloat16"), 1.0)


def test_group_products_are_the_diagonal_blocks():
    full = jnp.asarray(np.arange(36.0).reshape(6, 6))
    blocks = group_products(full, 3)
    np.testing.assert_array_equal(blocks[0], full[:3, :3])
    np.testing.assert_array_equal(blocks[1], full[3:, 3:])
