"""HF -> Orbax -> HF keeps every bit; a conversion that fails leaves nothing behind."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file
from support.checkpoint_edits import assert_same_tensors
from support.quantized_checkpoints import QUANTIZATIONS, write_quantized
from support.tiny_checkpoints import tensors, write_checkpoint

from jaxdeploy.errors import CheckpointError, ConfigError

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_hf.py"
spec = importlib.util.spec_from_file_location("convert_hf", SCRIPT)
assert spec is not None
assert spec.loader is not None
convert_hf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(convert_hf)


def convert(source: Path, destination: Path, target: str, force: bool = False) -> None:
    console = Console(file=io.StringIO())
    convert_hf.convert(source, destination, convert_hf.Format(target), force=force, console=console)


def read_all(directory: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in directory.glob("*.safetensors"):
        found |= load_file(file)
    return found


# One case for each naming, bias and tie.
@pytest.mark.parametrize(
    "case", ["internlm2", "internlm2_bias", "internlm3", "llama_bias", "mistral", "qwen2", "qwen3", "smollm2"]
)
def test_dense_round_trip(case, tmp_path):
    source = write_checkpoint(case, tmp_path / "src", dtype=ml_dtypes.bfloat16, shards=2)
    (source / "tokenizer.json").write_text("{}")
    (source / ".cache").write_text("not copied")
    convert(source, tmp_path / "orbax", "orbax")
    convert(tmp_path / "orbax", tmp_path / "back", "hf")
    assert_same_tensors(read_all(tmp_path / "back"), read_all(source))
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["back", "orbax", "src"]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_int4_round_trip(quantization, tmp_path):
    written, _ = write_quantized("internlm2_bias", quantization, tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "orbax", "orbax")
    convert(tmp_path / "orbax", tmp_path / "back", "hf")
    assert_same_tensors(read_all(tmp_path / "back"), written)


def test_unused_tensors_and_bare_names_come_back(tmp_path):
    source = write_checkpoint("smollm2", tmp_path / "src")
    weights = {name.removeprefix("model."): value for name, value in tensors("smollm2").items()}
    weights["layers.0.self_attn.rotary_emb.inv_freq"] = np.arange(6, dtype=np.float32)
    weights["lm_head.weight"] = np.ones((128, 96), np.float32)
    save_file(weights, source / "model.safetensors")
    convert(source, tmp_path / "orbax", "orbax")
    convert(tmp_path / "orbax", tmp_path / "back", "hf")
    assert_same_tensors(read_all(tmp_path / "back"), weights)


def test_destination_in_the_way(tmp_path):
    source = write_checkpoint("llama2", tmp_path / "src")
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty.*--force"):
        convert(source, tmp_path / "dst", "orbax")
    with pytest.raises(ConfigError, match=r"no model's folder.*--force does not"):
        convert(source, tmp_path / "dst", "orbax", force=True)
    assert (tmp_path / "dst" / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="overlap"):
        convert(source, source / "inside", "orbax")


def test_force_replaces_a_model(tmp_path):
    source = write_checkpoint("llama2", tmp_path / "src")
    write_checkpoint("qwen2", tmp_path / "dst")
    convert(source, tmp_path / "dst", "orbax", force=True)
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["model_type"] == "llama"
    assert not (tmp_path / "dst" / "model.safetensors").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dst", "src"]


def test_failure_leaves_nothing(tmp_path):
    source = write_checkpoint("llama2", tmp_path / "src")
    weights = tensors("llama2")
    del weights["model.norm.weight"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        convert(source, tmp_path / "dst", "orbax")
    assert [file.name for file in tmp_path.iterdir()] == ["src"]


def test_same_format(tmp_path):
    source = write_checkpoint("llama2", tmp_path / "src")
    with pytest.raises(CheckpointError, match="in the format 'hf' already"):
        convert(source, tmp_path / "dst", "hf")


def test_command_line(tmp_path):
    source = write_checkpoint("llama2", tmp_path / "src")
    command = [sys.executable, "-W", "error", str(SCRIPT), str(source), str(tmp_path / "dst"), "--format", "orbax"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dst" / "jaxdeploy.json").is_file()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "error: " in again.stderr
    assert "is not empty" in again.stderr
    assert "Traceback" not in again.stderr
