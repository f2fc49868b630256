"""Rows to tiles and back, and models that compute the same with either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy import functional
from jaxdeploy.model.linear import linear
from jaxdeploy.weights.quant_tensor import QuantTensor
from jaxdeploy.weights.tiled_tensor import TiledTensor, can_tile, in_tiles, tile_weights


def random_rows(seed: int, outputs: int, inputs: int, group_size: int, *, layers: int = 2, act_order: bool = False):
    rng = np.random.default_rng(seed)
    groups = (layers, inputs // group_size, outputs)
    perm = np.stack([rng.permutation(inputs) for _ in range(layers)]).astype(np.int32) if act_order else None
    return QuantTensor(
        jnp.asarray(rng.integers(0, 256, (layers, outputs, inputs // 2), dtype=np.uint8)),
        jnp.asarray(rng.normal(0, 0.02, groups), jnp.bfloat16),
        jnp.asarray(rng.integers(0, 16, groups, dtype=np.uint8)),
        None if perm is None else jnp.asarray(perm),
        group_size,
    )


@pytest.mark.parametrize(
    ("outputs", "inputs", "group_size"),
    [(32, 256, 128), (48, 576, 64), (16, 128, 32), (40, 256, 256), (64, 1536, 1536), (32, 576, 576), (32, 384, 192)],
)
@pytest.mark.parametrize("gated", [False, True])
def test_there_and_back_is_exact(outputs, inputs, group_size, gated):
    rows = random_rows(outputs + inputs, outputs, inputs, group_size, act_order=inputs == 256)
    tiles = in_tiles(rows, gated=gated)
    assert tiles.gated == (gated and outputs % 16 == 0)
    back = tiles.in_rows()
    assert jax.tree.structure(back) == jax.tree.structure(rows)
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(rows), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("act_order", [False, True])
def test_linear_computes_the_same_with_either(act_order):
    rows = random_rows(1, 64, 256, 64, act_order=act_order)
    x = jax.random.normal(jax.random.key(0), (3, 256), jnp.bfloat16)
    for layer in range(2):
        number = jnp.int32(layer)
        np.testing.assert_array_equal(linear(x, in_tiles(rows), number), linear(x, rows, number))
        gate, up = jnp.split(linear(x, rows, number), 2, axis=-1)
        np.testing.assert_array_equal(linear(x, in_tiles(rows, gated=True), number), jax.nn.silu(gate) * up)


def test_what_kernels_cannot_take_stays_in_rows():
    assert can_tile(random_rows(0, 32, 256, 64))
    assert not can_tile(random_rows(0, 32, 240, 24)), "groups of 24 are not whole instructions"
    float32_scales = random_rows(0, 32, 256, 64)
    assert not can_tile(float32_scales.replace(scale=float32_scales.scale.astype(jnp.float32)))
    params = {
        "mlp": {"gate_up": {"weight": random_rows(0, 64, 256, 64)}, "down": {"weight": random_rows(0, 32, 240, 24)}}
    }
    params["norm"] = jnp.ones(3)
    tiled = tile_weights(params)
    assert isinstance(tiled["mlp"]["gate_up"]["weight"], TiledTensor)
    assert tiled["mlp"]["gate_up"]["weight"].gated
    assert isinstance(tiled["mlp"]["down"]["weight"], QuantTensor)
    assert not params, "the rows are handed over"


def test_a_gate_with_a_bias_takes_no_turns():
    params = {"mlp": {"gate_up": {"weight": random_rows(0, 64, 256, 64), "bias": jnp.zeros((2, 64))}}}
    assert not tile_weights(params)["mlp"]["gate_up"]["weight"].gated


def test_the_functional_interface_tiles_on_a_gpu_and_for_16_bits(monkeypatch):
    def params():
        return {"mlp": {"down": {"weight": random_rows(0, 32, 256, 64)}}}

    def kind(platform: str, dtype: str):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: platform)
            return type(functional._for_kernels(params(), dtype)["mlp"]["down"]["weight"])

    assert kind("gpu", "bfloat16") is TiledTensor
    assert kind("gpu", "float32") is QuantTensor
    assert kind("cpu", "bfloat16") is QuantTensor
