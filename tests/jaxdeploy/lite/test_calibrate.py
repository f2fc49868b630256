"""Statistics written to a file equal those of the activations themselves."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny_text_model import TEXT, write_text_model

from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.calibrate import write_statistics
from jaxdeploy.lite.recipe import Calibration


def test_every_module_has_statistics(tmp_path: Path):
    source = write_text_model("llama3", tmp_path / "source")
    (tmp_path / "text.txt").write_text(TEXT)
    options = Calibration(dataset=str(tmp_path / "text.txt"), samples=5, seqlen=16, batch_size=2, eval_samples=0)
    file = write_statistics(source, tmp_path / "out", options)
    found = load_file(file)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["statistics.safetensors"]
    assert len(found) == 2 * 7 * 3
    q, k = (found[f"model.layers.1.self_attn.{part}_proj.input_mean_abs"] for part in "qk")
    np.testing.assert_array_equal(q, k)
    for name, largest in found.items():
        if name.endswith("input_max_abs"):
            module = name.removesuffix("input_max_abs")
            assert (found[module + "input_mean_abs"] <= largest).all()
            assert (found[module + "input_mean_abs"] ** 2 <= 1.0001 * found[module + "input_mean_square"]).all()
    with pytest.raises(ConfigError, match="--force"):
        write_statistics(source, tmp_path / "out", options)


def test_layer_0_statistics_are_those_of_the_normalized_embedding(tmp_path: Path):
    source = write_text_model("llama3", tmp_path / "source")
    (tmp_path / "text.txt").write_text("ab" * 40)
    options = Calibration(dataset=str(tmp_path / "text.txt"), samples=3, seqlen=16, eval_samples=0)
    found = load_file(write_statistics(source, tmp_path / "out", options))
    tensors = load_file(source / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"][[ord("a"), ord("b")]]
    rows = (
        rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5) * tensors["model.layers.0.input_layernorm.weight"]
    )
    np.testing.assert_allclose(
        found["model.layers.0.self_attn.q_proj.input_mean_abs"], np.abs(rows).mean(axis=0), rtol=1e-4
    )
    np.testing.assert_allclose(
        found["model.layers.0.self_attn.v_proj.input_max_abs"], np.abs(rows).max(axis=0), rtol=1e-4
    )
