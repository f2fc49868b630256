"""Scaling of input channels: it changes nothing but what rounding loses."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_checkpoints import write_checkpoint

from jaxdeploy.lite.awq import channel_scales, choose_alpha, fold_scales, pair_scales, scale_layer, weight_importance
from jaxdeploy.lite.block import DOWN, GATE_UP, LINEARS, OUT, QKV, block, positions
from jaxdeploy.lite.block_stream import BlockStream, linear_inputs
from jaxdeploy.lite.layer_weights import LayerFiles
from jaxdeploy.lite.recipe import Recipe
from jaxdeploy.lite.rounding import nearest
from jaxdeploy.weights.checkpoint import open_checkpoint

LENGTH = 12

_block = jax.jit(block, static_argnums=0)


class Layer:
    """Layer 0 of a tiny checkpoint with random activations, a few channels of which are large."""

    def __init__(self, case: str, directory: Path):
        checkpoint = open_checkpoint(write_checkpoint(case, directory))
        self.config = checkpoint.config
        assert checkpoint.source is not None
        arrays = LayerFiles(self.config).read(checkpoint.source, 0)
        checkpoint.close()
        self.weights = {name: jnp.asarray(array) for name, array in arrays.items()}
        random = np.random.RandomState(3)
        embedding = random.standard_normal((50, self.config.hidden_size)).astype(np.float32)
        embedding[:, ::9] *= 12
        tokens = random.randint(0, 50, (5, LENGTH)).astype(np.int32)
        self.stream = BlockStream(self.config, embedding, tokens, batch=2, dtype="float32")
        self.places = positions(self.config, LENGTH, 0)
        self.statistics = self.stream.statistics(self.weights, self.places)

    def output(self, weights) -> jax.Array:
        return jnp.concatenate([_block(self.config, weights, x, self.places)[0] for x in self.stream.chunks])


@pytest.fixture(params=["llama_bias", "internlm2_bias", "qwen3"])
def layer(request, tmp_path: Path) -> Layer:
    return Layer(request.param, tmp_path)


@pytest.mark.parametrize("linear", LINEARS)
def test_a_scaled_layer_computes_the_same(layer: Layer, linear: str):
    s = pair_scales(layer.config, linear, layer.weights, layer.statistics, 8, 0.6)
    assert float(s.max() / s.min()) > 1.2, "there is something to scale"
    scaled, applied = fold_scales(layer.config, linear, layer.weights, s, "float16")
    np.testing.assert_allclose(layer.output(scaled), layer.output(layer.weights), atol=2e-4)
    w = f"{linear}.weight"
    np.testing.assert_allclose(scaled[w], layer.weights[w] * applied, rtol=1e-6)
    np.testing.assert_allclose(applied, s, rtol=2e-3)


@pytest.mark.parametrize("linear", [QKV, GATE_UP])
def test_a_norm_is_stored_exactly(layer: Layer, linear: str):
    s = pair_scales(layer.config, linear, layer.weights, layer.statistics, 8, 0.6)
    scaled, _ = fold_scales(layer.config, linear, layer.weights, s, "bfloat16")
    norm = {QKV: "attention_norm.weight", GATE_UP: "mlp_norm.weight"}[linear]
    np.testing.assert_array_equal(scaled[norm], scaled[norm].astype("bfloat16").astype(jnp.float32))
    assert not np.array_equal(scaled[norm], layer.weights[norm])


def test_statistics_follow_the_scales(layer: Layer):
    weights, statistics, alphas = scale_layer(
        layer.config,
        layer.weights,
        layer.statistics,
        {},
        layer.places,
        Recipe(group_size=8, scaling="fixed"),
        "float16",
    )
    assert alphas == dict.fromkeys(LINEARS, 0.5)
    counted = layer.stream.statistics(weights, layer.places)
    for linear in LINEARS:
        for field in ("products", "absolute", "largest"):
            expected = getattr(counted[linear], field)
            scale = float(jnp.abs(expected).max())
            np.testing.assert_allclose(getattr(statistics[linear], field), expected, atol=2e-3 * scale, err_msg=linear)


def test_the_search_finds_the_least_error_of_the_blocks_output(layer: Layer):
    recipe = Recipe(group_size=8, alphas=6)
    inputs = [linear_inputs(layer.config, layer.weights, x, layer.places) for x in layer.stream.chunks]
    exact = layer.output(layer.weights)
    for linear in (QKV, OUT, DOWN):
        samples = [chunk[linear] for chunk in inputs]
        alpha, share = choose_alpha(
            layer.config, linear, layer.weights, layer.statistics, samples, layer.places, recipe, "float16"
        )
        errors = {}
        name = f"{linear}.weight"
        for tried in (None, *(step / 6 for step in range(6))):
            s = jnp.ones(1)
            if tried is not None:
                s = pair_scales(layer.config, linear, layer.weights, layer.statistics, 8, tried)
            changed = {**layer.weights, name: nearest(layer.weights[name] * s, 8, "float16") / s}
            errors[tried] = float(
                jnp.sum(jnp.square(half_output(layer, changed, linear) - half_output(layer, layer.weights, linear)))
            )
        assert errors[alpha] <= 1.01 * min(errors.values()), (linear, errors)
        assert share == pytest.approx(errors[alpha] / errors[None], rel=0.02)
    assert np.isfinite(exact).all()


def half_output(layer: Layer, weights, linear: str) -> jax.Array:
    """The whole layer's output for the MLP; for the attention, with the MLP switched off."""
    if linear in (QKV, OUT):
        weights = {**weights, "mlp.down.weight": jnp.zeros_like(weights["mlp.down.weight"])}
    return layer.output(weights)


def test_dead_channels_are_left_alone():
    a = jnp.asarray([0.0, 1.0, 4.0, 2.0])
    w = jnp.asarray([0.5, 0.5, 0.5, 0.0])
    s = np.asarray(channel_scales(a, w, 0.5))
    assert s[0] == s[3] == 1
    np.testing.assert_allclose(s[1:3], [2**-0.5, 2**0.5], rtol=1e-6)
    np.testing.assert_array_equal(channel_scales(jnp.zeros(4), w, 0.5), np.ones(4))


def test_importance_is_the_mean_share_of_the_groups_largest():
    w = jnp.asarray([[1.0, -2.0, 0.0, 0.0], [4.0, 1.0, 3.0, -1.0]])
    np.testing.assert_allclose(weight_importance(w, 2), [0.75, 0.625, 0.5, 1 / 6], rtol=1e-6)
