"""Which modules of an int4 checkpoint stay float."""

import numpy as np
import pytest
from support.checkpoint_edits import with_tensors
from support.quantized_checkpoints import write_quantized
from support.tiny_checkpoints import tensors

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.loader import load_parameters
from jaxdeploy.weights.quant_tensor import QuantTensor


def test_modules_left_float_are_found_by_their_tensors(tmp_path):
    written, _ = write_quantized("internlm2", "awq", tmp_path / "all")
    dense = {name: value for name, value in written.items() if ".feed_forward.w2." not in name}
    dense |= {name: value for name, value in tensors("internlm2").items() if ".feed_forward.w2." in name}
    params = load_parameters(open_checkpoint(with_tensors(tmp_path / "all", tmp_path / "some", dense)), "float32")
    np.testing.assert_array_equal(
        params["layers"]["mlp"]["down"]["weight"][1], tensors("internlm2")["model.layers.1.feed_forward.w2.weight"]
    )
    assert isinstance(params["layers"]["mlp"]["gate_up"]["weight"], QuantTensor)


@pytest.mark.parametrize(
    ("floats", "message"),
    [(("0.self_attn.q_proj", "1.self_attn.q_proj"), "they are joined"), (("1.mlp.down_proj",), "all layers")],
)
def test_unequal_quantization_is_refused(floats, message, tmp_path):
    written, _ = write_quantized("llama2", "awq", tmp_path / "all")
    mixed = {name: value for name, value in written.items() if not any(f"{module}." in name for module in floats)}
    for module in floats:
        mixed[f"model.layers.{module}.weight"] = tensors("llama2")[f"model.layers.{module}.weight"]
    with_tensors(tmp_path / "all", tmp_path / "some", mixed)
    with pytest.raises(CheckpointError, match=f"{floats[0]} is float but .* is int4; {message}"):
        open_checkpoint(tmp_path / "some")


def test_quantization_config_without_int4_weights(tmp_path):
    write_quantized("llama2", "awq", tmp_path / "all")
    with_tensors(tmp_path / "all", tmp_path / "some", tensors("llama2"))
    with pytest.raises(CheckpointError, match="quant_method 'awq', but no module has a tensor 'qweight'"):
        open_checkpoint(tmp_path / "some")


def test_missing_module_counts_as_the_configuration_says(tmp_path):
    written, _ = write_quantized("llama2", "awq", tmp_path / "all")
    left = {name: value for name, value in written.items() if "layers.1.mlp.down_proj" not in name}
    checkpoint = open_checkpoint(with_tensors(tmp_path / "all", tmp_path / "some", left))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.qweight'.* is missing"):
        load_parameters(checkpoint, "float32")
