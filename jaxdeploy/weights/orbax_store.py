"""Our own checkpoint folder: the stacked tree in Orbax's format, as it is on the device.

config.json, tokenizer files    as in the Hugging Face folder it was made from
jaxdeploy.json                  format version, arrays, file sizes, what else the way back needs
params/                         Orbax
extra/model.safetensors         tensors that the model does not use, for the way back (only if there are any)
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.checkpoint import CONFIG_FILE, ORBAX_FILE, Checkpoint, read_json
from jaxdeploy.weights.inventory import check_tensors
from jaxdeploy.weights.leaf import LeafPlan, leaf_plans, nest, pick
from jaxdeploy.weights.loader import Progress, ShardingRule
from jaxdeploy.weights.safetensors_writer import write_safetensors

VERSION = 1
PARAMS_FOLDER = "params"
EXTRA_FOLDER = "extra"
_CHUNK_BYTES = 1 << 26  # a device that holds a part of an array reads only the chunks of that part


def save_parameters(directory: Path | str, params: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Write a parameter tree with the configuration of the checkpoint it was loaded from; tokenizer files are left to the caller.

    Args:
        directory: must not hold ``params/`` yet.
        params: from ``load_parameters(checkpoint, None)`` to be exact to the bit.
        checkpoint: where ``params`` come from; still open.
    """
    assert checkpoint.source is not None
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config
    plans = list(leaf_plans(config, config.dtype))
    _, extra = check_tensors(config, checkpoint.source, plans, checkpoint.layout)
    arrays = {}
    for plan in plans:
        leaf = pick(params, plan.path)
        arrays |= {(*plan.path, field): getattr(leaf, field) if field else leaf for field in plan.fields()}
    arrays = {_key(path): array for path, array in arrays.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), arrays)
        checkpointer.save((directory / PARAMS_FOLDER).absolute(), arrays, save_args=save_args)
    if extra:
        write_safetensors(directory / EXTRA_FOLDER, ((name, checkpoint.source.read(name)) for name in extra))
    about: dict[str, Any] = {
        "version": VERSION,
        "model_prefix": checkpoint.model_prefix,
        "files": _file_sizes(directory),
        "arrays": {key: {"dtype": str(a.dtype), "shape": list(a.shape)} for key, a in arrays.items()},
    }
    if config.quantization is not None and checkpoint.layout is not None:
        about["float_modules"] = list(config.quantization.modules_to_not_convert)
        about["int4_suffixes"] = list(checkpoint.layout.suffixes)
    (directory / CONFIG_FILE).write_text(json.dumps(checkpoint.raw_config, indent=2) + "\n")
    (directory / ORBAX_FILE).write_text(json.dumps(about, indent=2) + "\n")


def restore_parameters(
    checkpoint: Checkpoint,
    dtype: str | None,
    *,
    progress: Progress | None = None,
    sharding: ShardingRule | None = None,
) -> dict[str, Any]:
    """The tree that ``save_parameters`` wrote. See ``load_parameters``.

    Raises:
        CheckpointError: the folder is incomplete or damaged, of another version, or does not fit its configuration.
    """
    about = _read_about(checkpoint.path)["arrays"]
    plans = list(leaf_plans(checkpoint.config, dtype or checkpoint.config.dtype))
    default = jnp.zeros(()).sharding
    targets = {}
    for plan in plans:
        for field, (struct, axes) in plan.fields().items():
            key = _key((*plan.path, field))
            kept = _check_array(checkpoint.path, key, struct, about)
            place = default if sharding is None else sharding(axes)
            targets[key] = jax.ShapeDtypeStruct(struct.shape, kept if dtype is None else struct.dtype, sharding=place)
    unknown = sorted(about.keys() - targets.keys())
    if unknown:
        raise CheckpointError(
            f"{checkpoint.path / ORBAX_FILE}: {unknown[0]!r} has no place in the model of {CONFIG_FILE}"
        )
    total = sum(struct.size * struct.dtype.itemsize for struct in targets.values())
    if progress is not None:
        progress(0, total)
    arrays = _restore((checkpoint.path / PARAMS_FOLDER).absolute(), targets)
    if progress is not None:
        progress(total, total)
    return nest({plan.path: _leaf(plan, arrays) for plan in plans})


def _key(path: tuple[str, ...]) -> str:
    return ".".join(part for part in path if part)


def _leaf(plan: LeafPlan, arrays: dict[str, jax.Array]) -> Any:
    return plan.assemble({field: arrays[_key((*plan.path, field))] for field in plan.fields()})


def _read_about(directory: Path) -> dict[str, Any]:
    about = read_json(directory / ORBAX_FILE)
    if about.get("version") != VERSION:
        raise CheckpointError(
            f"{directory / ORBAX_FILE}: version {about.get('version')!r} is not supported, expected {VERSION}; convert the "
            "Hugging Face checkpoint again"
        )
    if not isinstance(about.get("arrays"), dict) or not isinstance(about.get("files"), dict):
        raise CheckpointError(f"{directory / ORBAX_FILE}: arrays and files must be objects; convert again")
    _check_files(directory, about["files"])
    return about


def _file_sizes(directory: Path) -> dict[str, int]:
    """Bytes of every file that Orbax wrote."""
    files = sorted(file for file in (directory / PARAMS_FOLDER).rglob("*") if file.is_file())
    return {file.relative_to(directory).as_posix(): file.stat().st_size for file in files}


def _check_files(directory: Path, expected: dict[str, int]) -> None:
    """Orbax says little of a missing or truncated file, so look first."""
    found = _file_sizes(directory)
    for name, size in expected.items():
        if found.get(name) != size:
            what = f"found {found[name]}" if name in found else "it is missing"
            raise CheckpointError(
                f"{directory / name}: expected {size} bytes, {what}; copy or convert the checkpoint again"
            )


def _check_array(directory: Path, key: str, struct: jax.ShapeDtypeStruct, about: dict[str, Any]) -> Any:
    """The stored dtype."""
    stored = about.get(key)
    if stored is None:
        raise CheckpointError(f"{directory / ORBAX_FILE}: array {key!r} is missing; does {CONFIG_FILE} belong to it?")
    dtype = jnp.dtype(stored["dtype"])
    same_kind = jnp.issubdtype(dtype, jnp.floating) == jnp.issubdtype(struct.dtype, jnp.floating)
    if tuple(stored["shape"]) != struct.shape or not same_kind:
        raise CheckpointError(
            f"{directory / ORBAX_FILE}: array {key!r} is {dtype} {tuple(stored['shape'])}, expected {struct.dtype} "
            f"{struct.shape} from {CONFIG_FILE}"
        )
    return dtype


def _restore(folder: Path, targets: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder, targets)
    except (OSError, ValueError, KeyError) as error:  # what tensorstore and Orbax raise for damaged files
        raise CheckpointError(f"{folder}: can't be restored, convert the checkpoint again: {error}") from error
