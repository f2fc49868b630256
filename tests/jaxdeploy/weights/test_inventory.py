"""Tensors that are missing, unknown, or left over and harmless."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.checkpoint_edits import rewrite, with_tensors
from support.quantized_checkpoints import write_quantized
from support.tiny_checkpoints import tensors, write_checkpoint

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.loader import load_parameters


def test_missing_tensor_is_named(tmp_path):
    rewrite(tmp_path, lambda weights: weights.pop("model.layers.0.mlp.up_proj.bias"))
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.bias' is missing"):
        load_parameters(open_checkpoint(tmp_path), "float32")


def test_missing_head_names_the_tie(tmp_path):
    rewrite(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight' is missing.*tie_word_embeddings"):
        load_parameters(open_checkpoint(tmp_path), "float32")


def test_int4_weights_without_a_quantization_config(tmp_path):
    write_quantized("llama2", "awq", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"int4, but config\.json has no quantization_config"):
        load_parameters(open_checkpoint(tmp_path), "float32")


def test_unknown_tensor_is_named(tmp_path):
    rewrite(tmp_path, lambda weights: weights.update({"model.layers.2.mlp.gate.weight": np.zeros(3, np.float32)}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.gate\.weight' has no place.*2 layers"):
        load_parameters(open_checkpoint(tmp_path), "float32")


def test_harmless_leftovers_are_ignored(tmp_path):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
        "lm_head.weight": np.full((128, 96), 7, np.float32),  # the tie wins
    }
    write_checkpoint("smollm2", tmp_path)
    save_file({**tensors("smollm2"), **extra}, tmp_path / "model.safetensors")
    params = load_parameters(open_checkpoint(tmp_path), "float32")
    assert "lm_head" not in params


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_that_quantizers_add_must_be_zero(value, tmp_path):
    written, _ = write_quantized("llama2", "awq", tmp_path / "a")
    extra = {**written, "model.layers.0.mlp.up_proj.bias": np.full(96, value, np.float16)}
    checkpoint = open_checkpoint(with_tensors(tmp_path / "a", tmp_path / "b", extra))
    if value == 0:
        assert "bias" not in load_parameters(checkpoint, "float32")["layers"]["mlp"]["gate_up"]
    else:
        with pytest.raises(CheckpointError, match=r"up_proj\.bias' has no place"):
            load_parameters(checkpoint, "float32")
