"""Putting the int4 checkpoint together: its configuration, its tensors, the files that go along."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxdeploy.config.model import OWN_SECTION, ModelConfig
from jaxdeploy.config.quantization import QuantizationConfig
from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.layer_weights import LayerFiles, outer_names, read_finite
from jaxdeploy.lite.recipe import Recipe
from jaxdeploy.lite.work_folder import WorkFolder
from jaxdeploy.text.gguf_tokenizer import tokenizer_from_gguf
from jaxdeploy.text.tokenizer_export import tokenizer_files
from jaxdeploy.weights.awq_layout import AwqLayout
from jaxdeploy.weights.checkpoint import Checkpoint
from jaxdeploy.weights.family_names import own_name
from jaxdeploy.weights.gguf_file import GGUFFile
from jaxdeploy.weights.gptq_layout import GptqLayout
from jaxdeploy.weights.int4_layouts import Int4Layout
from jaxdeploy.weights.safetensors_writer import write_safetensors

_NOT_COPIED = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5",
    "*.msgpack", "*.onnx", "*.gguf", ".*",
)  # fmt: skip
_DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@dataclass(frozen=True, slots=True)
class Target:
    """The checkpoint to write.

    Attributes:
        config: of the int4 model.
        raw_config: its ``config.json``.
        dtype: "bfloat16" or "float16": of scales and of everything that stays float.
        layout: how int4 modules are stored.
    """

    config: ModelConfig
    raw_config: dict[str, Any]
    dtype: str
    layout: Int4Layout

    @property
    def numpy_dtype(self) -> Any:
        """``dtype`` for numpy."""
        return _DTYPES[self.dtype]


def plan_target(checkpoint: Checkpoint, recipe: Recipe) -> Target:
    """What quantizing ``checkpoint`` by ``recipe`` will give.

    The model's own dtype is kept; float32 becomes float16, which other engines run int4 weights in.

    Raises:
        ConfigError: it is int4 already, or sizes that the groups or the packing don't divide.
    """
    config = checkpoint.config
    if config.quantization is not None:
        raise ConfigError(
            f"{checkpoint.path} is quantized already ({config.quantization.method}, {config.quantization.bits} bits); give the "
            "float checkpoint that it was made from"
        )
    if checkpoint.source is None:
        raise ConfigError(
            f"{checkpoint.path} is an Orbax checkpoint; convert it first: python scripts/convert_hf.py SRC DST --format hf"
        )
    _check_sizes(config, recipe)
    dtype = config.dtype if config.dtype in _DTYPES else "float16"
    section = _section(recipe, own_name(config.family, "lm_head"))
    quantization = QuantizationConfig.from_hf(section)
    raw = {key: value for key, value in checkpoint.raw_config.items() if key not in ("dtype", "torch_dtype")}
    raw |= {"torch_dtype": dtype, "quantization_config": section}
    if recipe.rotate_values:
        raw[OWN_SECTION] = {**raw.get(OWN_SECTION, {}), "values_rotated": True}
    layout = AwqLayout(recipe.group_size) if recipe.format == "awq" else GptqLayout(recipe.group_size)
    return Target(replace(config, quantization=quantization, dtype=dtype), raw, dtype, layout)


def write_model(work: WorkFolder, checkpoint: Checkpoint, target: Target, shard_bytes: int = 5_000_000_000) -> Path:
    """Write the model from the finished layers and give it its name.

    Returns:
        The model's folder.
    """
    shutil.rmtree(work.model, ignore_errors=True)
    write_safetensors(work.model, _all_tensors(work, checkpoint, target), shard_bytes)
    (work.model / "config.json").write_text(json.dumps(target.raw_config, indent=2) + "\n", encoding="utf-8")
    if isinstance(checkpoint.source, GGUFFile):
        tokenizer = tokenizer_from_gguf(checkpoint.source.metadata, str(checkpoint.path))
        for name, content in tokenizer_files(tokenizer).items():
            (work.model / name).write_bytes(content)
    else:
        for file in sorted(checkpoint.directory.iterdir()):
            if file.is_file() and not any(file.match(pattern) for pattern in _NOT_COPIED):
                shutil.copyfile(file, work.model / file.name)
    return work.publish()


def _all_tensors(work: WorkFolder, checkpoint: Checkpoint, target: Target) -> Iterator[tuple[str, np.ndarray]]:
    source = checkpoint.source
    assert source is not None
    outer = outer_names(checkpoint.config)
    first = [name for name, plan in outer if plan.path[0] == "embedding"]
    for name in first:
        yield name, read_finite(source, name).astype(target.numpy_dtype, copy=False)
    for layer in range(checkpoint.config.num_layers):
        kept = work.layer_source(layer)
        for name in kept.names():
            yield name, kept.read(name)
        kept.close()
    for name, _ in outer:
        if name not in first:
            yield name, read_finite(source, name).astype(target.numpy_dtype, copy=False)


def _section(recipe: Recipe, head: str) -> dict[str, Any]:
    """``quantization_config`` as AutoAWQ or AutoGPTQ writes it."""
    if recipe.format == "awq":
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": recipe.bits,
            "group_size": recipe.group_size,
            "zero_point": True,
            "modules_to_not_convert": [head],
        }
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "sym": False,
        "desc_act": recipe.stored_act_order,
        "damp_percent": recipe.damping,
        "lm_head": False,
    }


def _check_sizes(config: ModelConfig, recipe: Recipe) -> None:
    files = LayerFiles(config)
    for linear, inputs in files.in_features().items():
        module = files.module_names(linear, 0)[0]
        if inputs % recipe.group_of(inputs):
            sizes = sorted(set(files.in_features().values()))
            fitting = [size for size in (128, 64, 32, 16) if all(inputs % size == 0 for inputs in sizes)]
            way_out = f"--w-group-size {' or '.join(map(str, fitting))}" if fitting else "--w-group-size -1"
            raise ConfigError(
                f"--w-group-size {recipe.group_size} does not divide the {inputs} inputs of {module}; this model needs {way_out}"
            )
        for plan_module in files.plans[f"{linear}.weight"].modules(0):
            if plan_module.outputs % 8 or inputs % 8:
                raise ConfigError(
                    f"{plan_module.name} has {plan_module.outputs} outputs and {inputs} inputs; int4 packing needs multiples of 8"
                )
