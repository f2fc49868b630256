"""A GGUF file as a TensorSource with the names and row order of a Hugging Face Llama checkpoint."""

import functools
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.gguf_header import GGUFTensor, MetadataValue, read_gguf_header
from jaxdeploy.weights.gguf_names import ROPE_FACTORS, hf_name
from jaxdeploy.weights.mapped_file import MappedFile
from jaxdeploy.weights.tensor_source import TensorInfo

# llama.cpp runs these with interleaved RoPE (pairs of neighbours), so its converter reorders the rows of q and k.
INTERLEAVED_ROPE = ("llama", "internlm2", "mistral3")

_PLAIN_DTYPES = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
_FLOAT32 = np.dtype(np.float32)
_SLAB_VALUES = 1 << 22  # the gguf package holds what it de-quantizes twice; slabs of 16 MiB keep that small


class GGUFFile:
    """Tensors of one GGUF file: F32, F16 and BF16 as views of the file, every other type de-quantized to float32.

    Names are those of Hugging Face's Llama (a tensor without one keeps its GGUF name), and the rows of q and k are in
    Hugging Face's order whatever llama.cpp made of them.

    Args:
        path: the file.

    Attributes:
        metadata: the file's key-value pairs as plain Python values, lists for arrays.
        rope_factors: float32 ``[head_dim / 2]``, divisors of the RoPE frequencies (llama3 style); None if not given.

    Raises:
        CheckpointError: not a GGUF file, truncated, one part of a split file, or a tensor type that the gguf package
            can't de-quantize; names file, tensor, type or bytes expected and found.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: no such file")
        self._file: MappedFile | None = MappedFile(self.path)
        self.metadata: dict[str, MetadataValue]
        self.metadata, tensors = read_gguf_header(self._file)
        parts = self.metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise CheckpointError(
                f"{self.path}: one of {parts} parts of a split file, which is not supported; join them with "
                "`llama-gguf-split --merge FIRST_PART OUT`"
            )
        self._gguf_names: dict[str, str] = {}
        self._tensors: dict[str, GGUFTensor] = {}
        for gguf_name, tensor in tensors.items():
            if not _is_supported(tensor.type):
                raise CheckpointError(
                    f"{self.path}: tensor {gguf_name!r} has type {tensor.type.name}, which can't be read"
                )
            name = hf_name(gguf_name) or gguf_name
            self._gguf_names[name] = gguf_name
            self._tensors[name] = tensor
        self._head_counts = self._read_head_counts()
        self.rope_factors: np.ndarray | None = None
        if ROPE_FACTORS in self._tensors:
            self.rope_factors = np.array(self.read(ROPE_FACTORS), np.float32)
            del self._tensors[ROPE_FACTORS]

    def names(self) -> Sequence[str]:
        """Every tensor's name but the RoPE factors', in the order of the file."""
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of what ``read`` returns; CheckpointError if there is no such tensor."""
        tensor = self._tensor(name)
        return TensorInfo(_PLAIN_DTYPES.get(tensor.type, _FLOAT32), tensor.shape, self.path)

    def stored_type(self, name: str) -> GGMLQuantizationType:
        """How the file stores ``name``; CheckpointError if there is no such tensor."""
        return self._tensor(name).type

    def read(self, name: str) -> np.ndarray:
        """The tensor, de-quantized; CheckpointError if there is no such tensor."""
        tensor = self._tensor(name)
        if self._file is None:
            raise CheckpointError(f"{self.path}: tensor {name!r} was read after close()")
        plain = _PLAIN_DTYPES.get(tensor.type)
        rows = tensor.shape[:-1]
        shape = tensor.shape if plain else (*rows, tensor.nbytes // max(1, int(np.prod(rows))))
        stored = self._file.array(tensor.offset, shape, plain or np.dtype(np.uint8))
        heads = self._head_counts.get(self._gguf_names[name].split(".", 2)[-1])
        if heads is not None:  # a row's blocks stay together, so rows can be moved before they are de-quantized
            stored = self._deinterleave(name, stored, heads)
        return stored if plain else _dequantize(stored, tensor)

    def close(self) -> None:
        """Let go of the file. Views that were handed out stay valid."""
        self._file = None

    def _tensor(self, name: str) -> GGUFTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing; {len(self._tensors)} others were found")
        return tensor

    def _read_head_counts(self) -> dict[str, int]:
        """Heads of the tensors whose rows llama.cpp reorders, by the end of their GGUF names."""
        architecture = self.metadata.get("general.architecture")
        if architecture not in INTERLEAVED_ROPE:
            return {}
        heads = self.metadata.get(f"{architecture}.attention.head_count")
        kv_heads = self.metadata.get(f"{architecture}.attention.head_count_kv", heads)
        if not isinstance(heads, int) or not isinstance(kv_heads, int) or heads <= 0 or kv_heads <= 0:
            raise CheckpointError(
                f"{self.path}: {architecture}.attention.head_count is {heads!r} and head_count_kv {kv_heads!r}, "
                "expected positive whole numbers"
            )
        return {"attn_q.weight": heads, "attn_q.bias": heads, "attn_k.weight": kv_heads, "attn_k.bias": kv_heads}

    def _deinterleave(self, name: str, stored: np.ndarray, heads: int) -> np.ndarray:
        """Rows of each head from (0, H/2, 1, H/2 + 1, ..) back to (0, 1, 2, ..), H being head_dim."""
        if stored.shape[0] % (2 * heads):
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has {stored.shape[0]} rows, expected a multiple of 2 * {heads} heads"
            )
        pairs = stored.reshape(heads, -1, 2, *stored.shape[1:])
        return pairs.swapaxes(1, 2).reshape(stored.shape)


@functools.cache
def _is_supported(kind: GGMLQuantizationType) -> bool:
    if kind in _PLAIN_DTYPES:
        return True
    _, block_bytes = GGML_QUANT_SIZES[kind]
    try:  # the package keeps its table of types to itself, so ask it with a block of zeros
        dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _dequantize(stored: np.ndarray, tensor: GGUFTensor) -> np.ndarray:
    """uint8 rows of blocks to float32."""
    out = np.empty(tensor.shape, np.float32)
    if out.size == 0:
        return out
    rows, wide = stored.reshape(-1, stored.shape[-1]), out.reshape(-1, tensor.shape[-1])
    step = max(1, _SLAB_VALUES // wide.shape[1])
    for start in range(0, len(rows), step):
        wide[start : start + step] = dequantize(rows[start : start + step], tensor.type)
    return out
