"""Learned rounding lowers the error of the layer's output and stays within its bounds."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_checkpoints import write_checkpoint

from jaxdeploy.lite.auto_round import Choice, Fixed, Offsets, learn_rounding, rounded
from jaxdeploy.lite.block import LINEARS, block, positions
from jaxdeploy.lite.layer_weights import LayerFiles
from jaxdeploy.lite.recipe import Recipe
from jaxdeploy.lite.rounding import dequantize, group_range, min_max_grid, nearest, round_nearest
from jaxdeploy.weights.checkpoint import open_checkpoint

GROUP, LENGTH = 16, 16
W = np.random.RandomState(0).standard_normal((8, 32)).astype(np.float32)


def start(w: np.ndarray) -> tuple[Fixed, Offsets]:
    low, high = group_range(jnp.asarray(w), GROUP)
    ones = jnp.ones_like(low)
    return Fixed(jnp.asarray(w), low, high), Offsets(jnp.zeros_like(w), ones, ones)


def test_it_starts_at_rounding_to_nearest():
    q, grid = rounded(*start(W), Choice("float16", 0))
    expected = min_max_grid(jnp.asarray(W), GROUP, "float16")
    np.testing.assert_array_equal(grid.scale, expected.scale)
    np.testing.assert_array_equal(q, round_nearest(jnp.asarray(W), expected))


def test_an_offset_moves_a_weight_by_one_level_at_most():
    fixed, offsets = start(W)
    q, _ = rounded(fixed, offsets, Choice("float16", 0))
    up, _ = rounded(fixed, offsets._replace(rounding=jnp.full_like(offsets.rounding, 0.5)), Choice("float16", 0))
    moved = np.asarray(up - q)
    assert set(np.unique(moved)) == {0.0, 1.0}


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_learning_lowers_the_error_of_the_layers_output(tmp_path: Path, share: float):
    checkpoint = open_checkpoint(write_checkpoint("llama3", tmp_path))
    config = checkpoint.config
    assert checkpoint.source is not None
    weights = {name: jnp.asarray(array) for name, array in LayerFiles(config).read(checkpoint.source, 0).items()}
    checkpoint.close()
    places = positions(config, LENGTH, 0)
    random = np.random.RandomState(1)
    inputs = [jnp.asarray(random.standard_normal((2, LENGTH, 64)), jnp.float32) for _ in range(4)]
    batches = [(x, block(config, weights, x, places)[0]) for x in inputs]
    ranges = {}
    for linear in LINEARS:
        low, high = group_range(weights[f"{linear}.weight"], GROUP)
        ranges[linear] = (low, high, jnp.full_like(low, share))
    recipe = Recipe(group_size=GROUP, rounding="learned", steps=40)
    learned, (before, after) = learn_rounding(config, weights, ranges, batches, places, recipe, "float16")
    assert after < 0.6 * before
    changed = dict(weights)
    for linear, (q, grid) in learned.items():
        assert float(q.min()) >= 0
        assert float(q.max()) <= 15
        np.testing.assert_array_equal(q, np.rint(q))
        changed[f"{linear}.weight"] = dequantize(q, grid)
    error = np.mean([float(jnp.mean((block(config, changed, x, places)[0] - y) ** 2)) for x, y in batches])
    assert error == pytest.approx(after, rel=1e-3), "what is returned is what was measured"
    if share == 1.0:
        plain = {
            **weights,
            **{f"{name}.weight": nearest(weights[f"{name}.weight"], GROUP, "float16") for name in LINEARS},
        }
        error = np.mean([float(jnp.mean((block(config, plain, x, places)[0] - y) ** 2)) for x, y in batches])
        assert error == pytest.approx(before, rel=1e-3), "the start is rounding to nearest"
