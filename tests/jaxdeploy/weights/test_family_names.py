"""Names and row orders of the families."""

import dataclasses

import numpy as np
import pytest
from support.tiny_checkpoints import CASES

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.weights.family_names import LAYER_PREFIX, QKV, checkpoint_modules, own_name, packed_qkv_order

INTERNLM2 = ModelConfig.from_hf(CASES["internlm2"])


@pytest.mark.parametrize(
    ("canonical", "own"),
    [
        ("model.embed_tokens", "model.tok_embeddings"),
        ("model.norm", "model.norm"),
        ("lm_head", "output"),
        ("model.layers.12.self_attn.k_proj", "model.layers.12.attention.wqkv"),
        ("model.layers.{layer}.mlp.up_proj", "model.layers.{layer}.feed_forward.w3"),
        ("model.layers.0.post_attention_layernorm", "model.layers.0.ffn_norm"),
    ],
)
def test_internlm2_names(canonical, own):
    assert own_name("internlm2", canonical) == own
    assert own_name("internlm3", canonical) == canonical


def test_packed_qkv_order_by_hand():
    config = dataclasses.replace(INTERNLM2, num_heads=4, num_kv_heads=2, head_dim=1)
    # Rows of wqkv: q0 q1 k0 v0 q2 q3 k1 v1.
    assert packed_qkv_order(config).tolist() == [0, 1, 4, 5, 2, 6, 3, 7]


def test_inverse_undoes_the_order():
    modules = tuple(f"{LAYER_PREFIX}1.{kind}" for kind in QKV)
    (module,) = checkpoint_modules(INTERNLM2, modules, 128)
    assert (module.name, module.outputs) == ("model.layers.1.attention.wqkv", 128)
    rows = np.random.RandomState(0).rand(128, 2)
    np.testing.assert_array_equal(rows[module.order][module.inverse], rows)


def test_modules_that_can_not_be_joined():
    with pytest.raises(ValueError, match="can't be joined"):
        checkpoint_modules(INTERNLM2, ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj"), 8)
