"""A directory of safetensors files, read without copying."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.mapped_file import MappedFile
from jaxdeploy.weights.tensor_source import TensorInfo

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

_PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True)
class _Entry:
    info: TensorInfo
    offset: int  # from the start of the file


class SafetensorsFiles:
    """A TensorSource over ``model.safetensors``, an index with its shards, or whatever ``*.safetensors`` there is.

    Headers are read and checked when it is made; the data is mapped and not touched before ``read``.

    Args:
        directory: folder of the checkpoint.

    Raises:
        CheckpointError: no safetensors file, or one that is truncated, inconsistent or of an unsupported dtype. The
            message names the file, the tensor, what was expected and what was found.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise CheckpointError(f"{self.directory}: not a directory")
        self._entries: dict[str, _Entry] = {}
        self._files: dict[Path, MappedFile] = {}
        paths, weight_map = _list_files(self.directory)
        for path in paths:
            file = self._files[path] = MappedFile(path)
            for name, entry in _read_header(file).items():
                if name in self._entries:
                    first = self._entries[name].info.file.name
                    raise CheckpointError(f"{path}: tensor {name!r} is also in {first}; a tensor must be in one shard")
                self._entries[name] = entry
        for name, shard in weight_map.items():
            found = self._entries.get(name)
            if found is None or found.info.file.name != shard:
                where = "in no shard" if found is None else f"in {found.info.file.name}"
                raise CheckpointError(
                    f"{self.directory / INDEX_FILE}: tensor {name!r} is expected in {shard}, found {where}"
                )

    def names(self) -> Sequence[str]:
        """Every tensor's name, shard by shard, in the order of the headers."""
        return tuple(self._entries)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and file of ``name``; CheckpointError if there is no such tensor."""
        return self._entry(name).info

    def read(self, name: str) -> np.ndarray:
        """A read-only view of ``name``; CheckpointError if there is no such tensor."""
        entry = self._entry(name)
        file = self._files.get(entry.info.file)
        if file is None:
            raise CheckpointError(f"{self.directory}: tensor {name!r} was read after close()")
        return file.array(entry.offset, entry.info.shape, entry.info.dtype)

    def close(self) -> None:
        """Let go of the files. Views that were handed out stay valid."""
        self._files.clear()

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(
                f"{self.directory}: tensor {name!r} is missing; {len(self._entries)} others were found"
            )
        return entry


def _list_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The files to read, in order, and the index's weight map (empty without an index)."""
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE], {}
    if (directory / INDEX_FILE).is_file():
        weight_map = _read_index(directory / INDEX_FILE)
        paths = []
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard:
                raise CheckpointError(f"{directory / INDEX_FILE}: shard {shard!r} must be a file name without a folder")
            if not (directory / shard).is_file():
                tensors = [name for name, where in weight_map.items() if where == shard]
                raise CheckpointError(
                    f"{directory / INDEX_FILE}: shard {shard} is missing; it holds {len(tensors)} tensors, "
                    f"{tensors[0]!r} among them. Download it again."
                )
            paths.append(directory / shard)
        return paths, weight_map
    paths = sorted(directory.glob("*.safetensors"))
    if paths:
        return paths, {}
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory}: holds only pickled weights ({pickles[0]}). Pickles run code when opened and "
            "are never read here. Take a safetensors revision of the model, or convert it where you trust the file: "
            "AutoModelForCausalLM.from_pretrained(src).save_pretrained(dst) of transformers writes safetensors."
        )
    raise CheckpointError(f"{directory}: no {SINGLE_FILE}, {INDEX_FILE} or other *.safetensors file")


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f'{path}: expected a non-empty "weight_map" of tensor names to file names')
    return weight_map


def _read_header(file: MappedFile) -> dict[str, _Entry]:
    """Tensors of one file, checked against its size (format: 8 bytes of header length, JSON, data without holes)."""
    path = file.path
    if file.size < 8:
        raise CheckpointError(f"{path}: {file.size} bytes is too short for a safetensors file; download it again")
    length = int.from_bytes(file.bytes_at(0, 8), "little")
    if length < 2 or length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: header length {length} is not between 2 and {MAX_HEADER_BYTES}; this is not a safetensors file"
        )
    if 8 + length > file.size:
        raise CheckpointError(f"{path}: truncated in its header: expected {8 + length} bytes, found {file.size}")
    try:
        header = json.loads(file.bytes_at(8, length), object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not valid: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is a JSON {type(header).__name__}, expected an object")
    header.pop("__metadata__", None)
    entries: dict[str, _Entry] = {}
    end = 0
    for name, fields in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        begin, stop = _offsets(path, name, fields)
        info = _tensor_info(path, name, fields)
        if begin != end:
            raise CheckpointError(f"{path}: tensor {name!r} begins at data byte {begin}, expected {end}")
        if stop - begin != info.nbytes:
            raise CheckpointError(
                f"{path}: tensor {name!r} has {stop - begin} bytes, expected {info.nbytes} for {fields['dtype']} "
                f"{list(info.shape)}"
            )
        if 8 + length + stop > file.size:
            found = max(0, file.size - 8 - length - begin)
            raise CheckpointError(
                f"{path}: truncated: tensor {name!r} needs {info.nbytes} bytes, found {found} "
                f"(the file has {file.size} bytes). Download it again."
            )
        entries[name] = _Entry(info, 8 + length + begin)
        end = stop
    if 8 + length + end != file.size:
        raise CheckpointError(f"{path}: expected {8 + length + end} bytes from the header, found {file.size}")
    return entries


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{twice!r} is listed twice")
    return keys


def _offsets(path: Path, name: str, fields: object) -> tuple[int, int]:
    offsets = fields.get("data_offsets") if isinstance(fields, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(value) is int for value in offsets)):
        raise CheckpointError(f"{path}: tensor {name!r} has data_offsets {offsets!r}, expected [begin, end]")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise CheckpointError(f"{path}: tensor {name!r} has data_offsets {offsets}, expected 0 <= begin <= end")
    return begin, end


def _tensor_info(path: Path, name: str, fields: dict) -> TensorInfo:
    shape, dtype = fields.get("shape"), fields.get("dtype")
    if not (isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)):
        raise CheckpointError(f"{path}: tensor {name!r} has shape {shape!r}, expected a list of sizes")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has unsupported dtype {dtype!r}; supported: {', '.join(DTYPES)}"
        )
    return TensorInfo(DTYPES[dtype], tuple(shape), path)
