"""A checkpoint on disk: what it is, its configuration and its tensors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import CheckpointError, ConfigError
from jaxdeploy.weights.gguf_config import model_config_dict
from jaxdeploy.weights.gguf_file import GGUFFile
from jaxdeploy.weights.int4_layouts import Int4Layout, int4_layout
from jaxdeploy.weights.quantized_modules import resolve_float_modules
from jaxdeploy.weights.safetensors_files import SafetensorsFiles
from jaxdeploy.weights.tensor_source import TensorInfo, TensorSource

CONFIG_FILE = "config.json"
ORBAX_FILE = "jaxdeploy.json"
"""Marks a folder that ``orbax_store`` wrote."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What ``open_checkpoint`` found.

    Attributes:
        path: the folder, or the GGUF file.
        kind: "hf" (safetensors), "gguf" or "orbax".
        config: sizes and variants; modules left float are listed by their Hugging Face Llama names.
        raw_config: ``config.json`` as it was read; made from the metadata for GGUF.
        source: the tensors, None for Orbax, whose tree is restored whole.
        layout: how int4 modules are stored; None for dense weights.
        model_prefix: False if the names in the files omit the leading "model."; ``source`` has it either way.
    """

    path: Path
    kind: str
    config: ModelConfig
    raw_config: dict[str, Any]
    source: TensorSource | None
    layout: Int4Layout | None
    model_prefix: bool = True

    @property
    def model_format(self) -> str:
        """The name that ``EngineConfig.model_format`` has for it: gguf, orbax, hf (dense), or the quantization's method."""
        if self.kind == "hf" and self.config.quantization is not None:
            return self.config.quantization.method
        return self.kind

    @property
    def directory(self) -> Path:
        """Where the tokenizer's files lie, if there are any."""
        return self.path if self.path.is_dir() else self.path.parent

    def close(self) -> None:
        """Let go of the files."""
        if self.source is not None:
            self.source.close()


def open_checkpoint(path: str | Path, model_format: str | None = None) -> Checkpoint:
    """Find out what lies at ``path`` and read its configuration and the headers of its files, but no weights.

    Args:
        path: a folder with ``config.json`` and safetensors, a GGUF file or a folder that holds just one, or a folder that
            ``scripts/convert_hf.py --format orbax`` wrote.
        model_format: what it must be, None for anything: hf (dense safetensors), awq, gptq, compressed-tensors, gguf, orbax.

    Raises:
        CheckpointError: nothing there, a damaged or unsupported file, or not what ``model_format`` says.
        ConfigError: a model that is not supported.
    """
    where = Path(path).expanduser()
    if where.is_file():
        if where.suffix.lower() != ".gguf":
            raise CheckpointError(
                f"{where}: a single file must be a .gguf; for {where.suffix or 'other'} files give the folder with config.json"
            )
        checkpoint = _open_gguf(where)
    elif where.is_dir():
        checkpoint = _open_directory(where)
    else:
        raise CheckpointError(_not_found(path))
    if model_format not in (None, checkpoint.model_format):
        checkpoint.close()
        raise CheckpointError(
            f"{where}: model_format={model_format!r} was asked for, found {checkpoint.model_format!r}; leave "
            "model_format out to take what is there"
        )
    return checkpoint


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError if it can't be read or is none."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def _open_directory(where: Path) -> Checkpoint:
    if (where / ORBAX_FILE).is_file():
        return _open_orbax(where)
    ggufs = sorted(where.glob("*.gguf"))
    if (where / CONFIG_FILE).is_file() and (not ggufs or any(where.glob("*.safetensors"))):
        return _open_safetensors(where)
    if len(ggufs) == 1:
        return _open_gguf(ggufs[0])
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise CheckpointError(f"{where}: holds {len(ggufs)} GGUF files ({names}); give the path of one of them")
    raise CheckpointError(
        f"{where}: no {CONFIG_FILE} and no .gguf file; a model's folder holds {CONFIG_FILE}, the tokenizer's files and "
        "*.safetensors"
    )


def _open_gguf(file: Path) -> Checkpoint:
    source = GGUFFile(file)
    raw = model_config_dict(source)
    return Checkpoint(file, "gguf", _model_config(file, raw), raw, source, layout=None)


def _open_orbax(where: Path) -> Checkpoint:
    raw = read_json(where / CONFIG_FILE)
    config = _model_config(where / CONFIG_FILE, raw)
    layout = None
    if config.quantization is not None:
        about = read_json(where / ORBAX_FILE)
        floats, suffixes = about.get("float_modules"), about.get("int4_suffixes")
        if not isinstance(floats, list) or not isinstance(suffixes, list):
            raise CheckpointError(f"{where / ORBAX_FILE}: float_modules and int4_suffixes must be lists; convert again")
        quantization = replace(config.quantization, modules_to_not_convert=tuple(floats))
        config = replace(config, quantization=quantization)
        layout = int4_layout(quantization, [f"module.{suffix}" for suffix in suffixes])
    return Checkpoint(where, "orbax", config, raw, None, layout)


def _open_safetensors(where: Path) -> Checkpoint:
    raw = read_json(where / CONFIG_FILE)
    config = _model_config(where / CONFIG_FILE, raw)
    source: TensorSource = SafetensorsFiles(where)
    prefixed = any(name.startswith("model.") for name in source.names())
    model_prefix = prefixed or not any(name.startswith("layers.") for name in source.names())
    if not model_prefix:
        source = _WithPrefix(source)
    layout = None
    if config.quantization is not None:
        layout = int4_layout(config.quantization, source.names())
        floats = resolve_float_modules(config, source, layout)
        config = replace(config, quantization=replace(config.quantization, modules_to_not_convert=floats))
    return Checkpoint(where, "hf", config, raw, source, layout, model_prefix)


def _model_config(file: Path, raw: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_hf(raw)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _not_found(path: str | Path) -> str:
    text = str(path)
    parts = text.split("/")
    if len(parts) == 2 and all(parts) and not text.startswith((".", "~")):
        return (
            f"{text!r} is not a folder here. Models are read from local folders and never downloaded; fetch it first, e.g. "
            f"`hf download {text} --local-dir {parts[1]}`, then give {parts[1]!r}"
        )
    return f"{text}: no such file or folder; give a model's folder (with {CONFIG_FILE}) or a .gguf file"


@dataclass(frozen=True, slots=True)
class _WithPrefix:
    """A TensorSource whose files omit the leading "model." of every name but the head's."""

    inner: TensorSource

    def names(self) -> Sequence[str]:
        return tuple(add_model_prefix(name) for name in self.inner.names())

    def info(self, name: str) -> TensorInfo:
        return self.inner.info(drop_model_prefix(name))

    def read(self, name: str) -> np.ndarray:
        return self.inner.read(drop_model_prefix(name))

    def close(self) -> None:
        self.inner.close()


def add_model_prefix(name: str) -> str:
    """``layers.0.x`` to ``model.layers.0.x``; the head's name (``lm_head``, ``output``) never has the prefix."""
    return name if name.startswith(("lm_head.", "output.")) else f"model.{name}"


def drop_model_prefix(name: str) -> str:
    """Undo ``add_model_prefix``."""
    return name.removeprefix("model.")
