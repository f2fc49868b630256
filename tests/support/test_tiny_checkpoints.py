"""The tiny checkpoints and their golden files, checked without running a model."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny_checkpoints import CASES, tensors, write_checkpoint

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_a_golden_of_prefill_and_16_steps(case):
    golden = np.load(GOLDENS / f"{case}.npz")
    tokens, prefill, logits = golden["tokens"], int(golden["prefill"]), golden["logits"]
    assert len(tokens) - prefill == 16
    assert logits.shape == (len(tokens), CASES[case]["vocab_size"])
    assert logits.dtype == np.float32
    assert 0.5 < logits.std() < 2
    assert (GOLDENS / f"{case}.npz").stat().st_size < 40_000


def test_weights_are_the_same_every_time():
    # Golden logits hold for these values only: a changed generator must fail here, not as a parity error.
    wqkv = tensors("internlm2")["model.layers.0.attention.wqkv.weight"]
    assert wqkv.shape == (128, 64)
    np.testing.assert_allclose(wqkv[0, :3], [-0.13833922, 0.05547715, 0.11422123], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_sharded_checkpoint_holds_every_tensor_once(tmp_path, dtype):
    write_checkpoint("smollm2", tmp_path, dtype, shards=3)
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) == 3
    stored = {name: value for file in set(weight_map.values()) for name, value in load_file(tmp_path / file).items()}
    assert stored.keys() == weight_map.keys() == tensors("smollm2").keys()
    for name, value in tensors("smollm2").items():
        np.testing.assert_array_equal(stored[name], value.astype(dtype))
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == np.dtype(dtype).name
