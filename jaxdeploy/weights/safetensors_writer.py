"""Writing safetensors shards in one pass, with one tensor in memory at a time."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.safetensors_files import DTYPES, INDEX_FILE, SINGLE_FILE

# The header stands before the data but is known only after it, so every shard starts with this much room, filled up
# with the spaces that the format allows. About 2000 tensors fit; a shard that has more is ended early.
HEADER_ROOM = 256 * 1024

_NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    directory: Path | str,
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write ``tensors`` as ``model.safetensors``, or as shards with an index when they are more than one shard.

    Files get their final names only when all of them are complete, the index last; an error on the way leaves
    none of them.

    Args:
        directory: made if missing; must not hold safetensors files yet, for a mix of two checkpoints can't be read.
        tensors: names and arrays, taken one by one.
        shard_bytes: a shard ends before its tensors exceed this many bytes (a larger tensor gets a shard of its own).
        metadata: the header's ``__metadata__``; ``{"format": "pt"}`` if None, which transformers asks for.

    Returns:
        The files of weights that were written, in order.

    Raises:
        CheckpointError: a name comes twice, a dtype that safetensors does not have, or files in the way.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    in_the_way = sorted(directory.glob("*.safetensors")) + sorted(directory.glob(INDEX_FILE))
    if in_the_way:
        raise CheckpointError(f"{directory}: already holds {in_the_way[0].name}; choose an empty directory")
    header_metadata = {"format": "pt"} if metadata is None else dict(metadata)
    shards: list[_Shard] = []
    try:
        seen: set[str] = set()
        for name, array in tensors:
            if name in seen:
                raise CheckpointError(f"{directory}: tensor {name!r} was given twice")
            seen.add(name)
            if not shards or not shards[-1].fits(name, array, shard_bytes):
                if shards:
                    shards[-1].finish()
                shards.append(_Shard(directory / f".model-{len(shards) + 1:05d}.safetensors.tmp", header_metadata))
            shards[-1].add(name, array)
        if not shards:
            raise CheckpointError(f"{directory}: no tensors to write")
        shards[-1].finish()
        return _publish(directory, shards)
    finally:
        for shard in shards:
            shard.discard()


class _Shard:
    """One file being written under a temporary name."""

    def __init__(self, path: Path, metadata: dict[str, str]):
        self.path = path
        self.header: dict[str, dict] = {"__metadata__": dict(metadata)}
        self.data_bytes = 0
        self._header_bytes = len(_encode(self.header))
        self._file: BinaryIO = path.open("wb")
        self._file.write(b"\0" * (8 + HEADER_ROOM))

    def fits(self, name: str, array: np.ndarray, shard_bytes: int) -> bool:
        too_large = self.data_bytes > 0 and self.data_bytes + array.nbytes > shard_bytes
        return not too_large and self._header_bytes + len(_encode(self._entry(name, array))) <= HEADER_ROOM

    def add(self, name: str, array: np.ndarray) -> None:
        entry = self._entry(name, array)
        self.header |= entry
        self._header_bytes += len(_encode(entry))
        # bfloat16 has no buffer protocol of its own; its bytes do.
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.data_bytes += array.nbytes

    def finish(self) -> None:
        header = _encode(self.header)
        if len(header) > HEADER_ROOM:
            raise CheckpointError(f"{self.path.name}: a header of {len(header)} bytes exceeds {HEADER_ROOM=}")
        self._file.seek(0)
        self._file.write(HEADER_ROOM.to_bytes(8, "little") + header.ljust(HEADER_ROOM))
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _entry(self, name: str, array: np.ndarray) -> dict[str, dict]:
        dtype = _NAME_OF_DTYPE.get(array.dtype)
        if dtype is None:
            raise CheckpointError(f"tensor {name!r} has dtype {array.dtype}, expected one of {', '.join(DTYPES)}")
        offsets = [self.data_bytes, self.data_bytes + array.nbytes]
        return {name: {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}}


def _encode(header: dict) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _publish(directory: Path, shards: list[_Shard]) -> list[Path]:
    """Give the complete shards their names, which hold the count of all, and write the index after them."""
    if len(shards) == 1:
        return [shards[0].path.replace(directory / SINGLE_FILE)]
    paths = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        path = shard.path.replace(directory / f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        paths.append(path)
        weight_map |= {name: path.name for name in shard.header if name != "__metadata__"}
    index = {"metadata": {"total_size": sum(shard.data_bytes for shard in shards)}, "weight_map": weight_map}
    temporary = directory / f".{INDEX_FILE}.tmp"
    temporary.write_text(json.dumps(index, indent=2) + "\n")
    temporary.replace(directory / INDEX_FILE)
    return paths
