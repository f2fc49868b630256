"""Writing a tiny checkpoint with its tensors changed, and comparing tensors bit by bit."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from support.tiny_checkpoints import tensors, write_checkpoint

from jaxdeploy.weights.safetensors_writer import write_safetensors


def rewrite(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """Rewrite a checkpoint of one file (the case llama_bias) with its tensors changed."""
    case_tensors = tensors("llama_bias")
    change(case_tensors)
    write_checkpoint("llama_bias", directory)
    save_file(case_tensors, directory / "model.safetensors")
    return directory


def with_tensors(source: Path, directory: Path, weights: Mapping[str, np.ndarray]) -> Path:
    """A checkpoint with the config.json of another."""
    write_safetensors(directory, weights.items())
    shutil.copyfile(source / "config.json", directory / "config.json")
    return directory


def assert_same_tensors(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].tobytes() == value.tobytes(), name
        assert found[name].shape == value.shape, name
