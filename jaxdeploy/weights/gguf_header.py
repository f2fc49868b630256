"""The header of a GGUF file: metadata and the list of tensors.

Read here and not by ``gguf.GGUFReader``, which makes an array of every element of every list (seconds for a vocabulary
of 50,000 tokens) and can't say which tensor a truncated file lacks. Format: the GGUF specification, versions 2 and 3.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.mapped_file import MappedFile

VERSIONS = (2, 3)
MetadataValue = bool | int | float | str | list

_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
_DTYPES = {kind: np.dtype(code) for kind, code in _SCALARS.items()}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of the file.

    Attributes:
        type: how its values are stored.
        shape: outermost dimension first (the file lists the innermost first).
        offset: of its data from the start of the file.
        nbytes: of its data.
    """

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_gguf_header(file: MappedFile) -> tuple[dict[str, MetadataValue], dict[str, GGUFTensor]]:
    """Metadata as plain Python values, and the tensors by name.

    Raises:
        CheckpointError: no GGUF file, another version or byte order, truncated, or a tensor whose type, shape or place
            can't be; names file, tensor, expected and found.
    """
    cursor = _Cursor(file)
    magic = file.bytes_at(0, 4)
    if magic != b"GGUF":
        raise CheckpointError(f"{file.path}: begins with {magic!r}, expected b'GGUF'; this is not a GGUF file")
    cursor.position = 4
    version = cursor.unpack("<I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        hint = " (a big-endian file)" if swapped in VERSIONS else ""
        raise CheckpointError(f"{file.path}: GGUF version {version}{hint} is not supported; supported: 2 and 3")
    tensor_count, entry_count = cursor.unpack("<Q"), cursor.unpack("<Q")
    metadata: dict[str, MetadataValue] = {}
    for _ in range(entry_count):
        key = cursor.string()
        if key in metadata:
            raise CheckpointError(f"{file.path}: metadata key {key!r} is listed twice")
        cursor.reading = f"metadata {key!r}"
        metadata[key] = cursor.value(cursor.unpack("<I"))
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        cursor.reading = "the list of tensors"
        name = cursor.string()
        if name in tensors:
            raise CheckpointError(f"{file.path}: tensor {name!r} is listed twice")
        cursor.reading = f"the shape of tensor {name!r}"
        dimensions = cursor.unpack("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise CheckpointError(f"{file.path}: tensor {name!r} has {dimensions} dimensions, expected at most 4")
        shape = tuple(cursor.unpack("<Q") for _ in range(dimensions))[::-1]
        tensors[name] = (shape, cursor.unpack("<I"), cursor.unpack("<Q"))
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise CheckpointError(f"{file.path}: general.alignment is {alignment!r}, expected a power of two")
    start = -(-cursor.position // alignment) * alignment
    return metadata, {name: _locate(file, name, start, *fields) for name, fields in tensors.items()}


def _locate(file: MappedFile, name: str, start: int, shape: tuple[int, ...], type_id: int, offset: int) -> GGUFTensor:
    try:
        kind = GGMLQuantizationType(type_id)
    except ValueError:
        raise CheckpointError(f"{file.path}: tensor {name!r} has ggml type {type_id}, which is not known") from None
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    columns = shape[-1] if shape else 1
    if columns % block_size:
        raise CheckpointError(
            f"{file.path}: tensor {name!r} has rows of {columns} values, expected a multiple of {block_size} "
            f"for type {kind.name}"
        )
    nbytes = prod(shape) // block_size * block_bytes
    if start + offset + nbytes > file.size:
        found = max(0, file.size - start - offset)
        raise CheckpointError(
            f"{file.path}: truncated: tensor {name!r} needs {nbytes} bytes, found {found} "
            f"(the file has {file.size} bytes). Download it again."
        )
    return GGUFTensor(kind, shape, start + offset, nbytes)


class _Cursor:
    """Reads the header front to back; every read is checked against the size of the file."""

    def __init__(self, file: MappedFile):
        self.path: Path = file.path
        self.buffer = file.buffer()
        self.size = file.size
        self.position = 0
        self.reading = "the header"

    def take(self, length: int) -> int:
        """Start of the next ``length`` bytes, which are passed over."""
        start = self.position
        if length > self.size - start:
            raise CheckpointError(
                f"{self.path}: truncated in {self.reading}: expected {length} bytes at {start}, "
                f"found {self.size - start}. Download it again."
            )
        self.position = start + length
        return start

    def unpack(self, code: str) -> int:
        return struct.unpack_from(code, self.buffer, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        length = self.unpack("<Q")
        start = self.take(length)
        return self._decode(self.buffer[start : start + length])

    def value(self, type_id: int) -> MetadataValue:
        kind = self._kind(type_id)
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self._array(self._kind(self.unpack("<I")), self.unpack("<Q"))
        return self._scalars(kind, 1)[0]

    def _array(self, kind: GGUFValueType, count: int) -> list:
        if kind == GGUFValueType.STRING:
            return self._strings(count)
        if kind == GGUFValueType.ARRAY:
            raise CheckpointError(f"{self.path}: {self.reading} is an array of arrays, which is not supported")
        return self._scalars(kind, count)

    def _scalars(self, kind: GGUFValueType, count: int) -> list:
        dtype = _DTYPES[kind]
        return np.frombuffer(self.buffer, dtype, count, self.take(count * dtype.itemsize)).tolist()

    def _strings(self, count: int) -> list[str]:
        """A vocabulary: the loop that costs, so it checks sizes itself and reads through a local buffer."""
        self.take(8 * count)  # every string has at least its length
        self.position -= 8 * count
        read_length, buffer, position, size = struct.Struct("<Q").unpack_from, self.buffer, self.position, self.size
        raw = []
        for _ in range(count):
            start = position + 8
            position = start + read_length(buffer, position)[0] if start <= size else size + 1
            if position > size:
                break
            raw.append(buffer[start:position])
        if len(raw) < count:
            raise CheckpointError(
                f"{self.path}: truncated in {self.reading}: expected {count} strings, found {len(raw)}. "
                "Download it again."
            )
        self.position = position
        return [self._decode(text) for text in raw]

    def _kind(self, type_id: int) -> GGUFValueType:
        try:
            return GGUFValueType(type_id)
        except ValueError:
            raise CheckpointError(f"{self.path}: {self.reading} has value type {type_id}, which is not known") from None

    def _decode(self, text: bytes) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {self.reading} is not UTF-8: {error}") from error
