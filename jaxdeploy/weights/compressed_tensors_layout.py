"""The "pack-quantized" layout of compressed-tensors (llm-compressor, vLLM)."""

from dataclasses import dataclass

import numpy as np

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.act_order import g_idx_from_perm, perm_from_g_idx
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.layout_checks import (
    INT32,
    SCALE_DTYPES,
    check_in_order,
    check_writable,
    count_groups,
    read_tensor,
    read_words,
)
from jaxdeploy.weights.nibbles import (
    NIBBLES,
    bytes_from_words,
    pack_words,
    restore_columns,
    take_columns,
    unpack_words,
    words_from_bytes,
)
from jaxdeploy.weights.tensor_source import TensorSource

# The format stores signed values -8..7 plus 8, so the stored nibbles are our q and a symmetric zero point is 8.
SYMMETRIC_ZERO = 8
_SHAPE_DTYPES = (np.dtype(np.int64), np.dtype(np.int32))


@dataclass(frozen=True, slots=True)
class CompressedTensorsLayout:
    """``weight_packed`` int32 ``[N, K/8]``, ``weight_scale`` ``[N, K/G]``, ``weight_shape`` int64 ``[2]``, and
    ``weight_zero_point`` int32 ``[ceil(N/8), K/G]`` unless symmetric, ``weight_g_idx`` int32 ``[K]`` with act-order.

    Args:
        group_size: G; -1 for one group per output (strategy "channel").
        symmetric: no zero points are stored; all are 8.
        g_idx: modules carry ``weight_g_idx`` (actorder "group").
    """

    group_size: int
    symmetric: bool
    g_idx: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names of a module's tensors."""
        names = ["weight_packed", "weight_scale", "weight_shape"]
        if not self.symmetric:
            names.append("weight_zero_point")
        if self.g_idx:
            names.append("weight_g_idx")
        return tuple(names)

    def read(self, source: TensorSource, module_name: str) -> Int4Matrix:
        """See ``Int4Layout.read``."""
        name = f"{module_name}.weight_packed"
        words = read_words(source, name)
        out_features, in_features = words.shape[0], NIBBLES * words.shape[1]
        shape = read_tensor(source, f"{module_name}.weight_shape", _SHAPE_DTYPES, (2,)).tolist()
        if shape != [out_features, in_features]:
            raise CheckpointError(
                f"{source.info(name).file}: {module_name}.weight_shape is {shape}, expected "
                f"{[out_features, in_features]} from weight_packed {list(words.shape)} (8 inputs a word, no padding)"
            )
        groups = count_groups(source, name, in_features, self.group_size)
        packed = bytes_from_words(words)
        scale = read_tensor(source, f"{module_name}.weight_scale", SCALE_DTYPES, (out_features, groups))
        if self.symmetric:
            zero = np.full((groups, out_features), SYMMETRIC_ZERO, np.uint8)
        else:
            padded = -(-out_features // NIBBLES)
            zero_words = read_tensor(source, f"{module_name}.weight_zero_point", INT32, (padded, groups))
            zero = np.ascontiguousarray(unpack_words(zero_words.T)[:, :out_features])
        perm = None
        if self.g_idx:
            name = f"{module_name}.weight_g_idx"
            perm = perm_from_g_idx(read_tensor(source, name, INT32, (in_features,)), groups, name)
        return Int4Matrix(take_columns(packed, perm), zero, np.ascontiguousarray(scale.T), perm)

    def write(self, matrix: Int4Matrix, module_name: str) -> list[tuple[str, np.ndarray]]:
        """See ``Int4Layout.write``. A symmetric layout takes only zero points of 8."""
        check_writable(matrix, self.group_size, module_name)
        if not self.g_idx:
            check_in_order(matrix, module_name, "compressed-tensors (without weight_g_idx)")
        if self.symmetric and (matrix.zero != SYMMETRIC_ZERO).any():
            found = int(matrix.zero[matrix.zero != SYMMETRIC_ZERO][0])
            raise CheckpointError(f"{module_name}: zero point {found} can't be written as symmetric, which means 8")
        words = words_from_bytes(restore_columns(matrix.packed, matrix.perm))
        shape = np.array([matrix.out_features, matrix.in_features], np.int64)
        tensors = [
            (f"{module_name}.weight_packed", words),
            (f"{module_name}.weight_scale", np.ascontiguousarray(matrix.scale.T)),
            (f"{module_name}.weight_shape", shape),
        ]
        if not self.symmetric:
            padding = -matrix.out_features % NIBBLES
            zero = np.pad(matrix.zero, ((0, 0), (0, padding)))
            tensors.append((f"{module_name}.weight_zero_point", np.ascontiguousarray(pack_words(zero).T)))
        if self.g_idx:
            g_idx = g_idx_from_perm(matrix.perm, matrix.in_features, matrix.scale.shape[0])
            tensors.append((f"{module_name}.weight_g_idx", g_idx))
        return tensors
