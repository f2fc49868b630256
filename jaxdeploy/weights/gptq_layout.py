"""GPTQ's layout, as AutoGPTQ (v1) and GPTQModel (v1, v2) write it."""

from dataclasses import dataclass

import numpy as np

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.act_order import g_idx_from_perm, perm_from_g_idx
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.layout_checks import (
    INT32,
    SCALE_DTYPES,
    check_in_order,
    check_multiple,
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

# v1 stores zero - 1, taken from the whole word: a nibble of 0 borrows from the one above it.
_V1_OFFSET = np.uint32(0x11111111)


@dataclass(frozen=True, slots=True)
class GptqLayout:
    """int32 ``qweight [K/8, N]``, ``qzeros [K/G, N/8]`` and ``g_idx [K]``, float ``scales [K/G, N]``.

    Args:
        group_size: G; -1 for one group per output.
        v2: zero points are stored as they are (``checkpoint_format: gptq_v2``), not less one.
        g_idx: modules carry ``g_idx``. Most writers store it without act-order too; a checkpoint that has none is
            read with False. With False, an act-order matrix can't be written.
    """

    group_size: int
    v2: bool = False
    g_idx: bool = True

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names of a module's tensors."""
        return ("qweight", "qzeros", "scales", "g_idx") if self.g_idx else ("qweight", "qzeros", "scales")

    def read(self, source: TensorSource, module_name: str) -> Int4Matrix:
        """See ``Int4Layout.read``."""
        name = f"{module_name}.qweight"
        qweight = read_words(source, name)
        in_features, out_features = NIBBLES * qweight.shape[0], qweight.shape[1]
        if out_features % NIBBLES:
            raise CheckpointError(
                f"{source.info(name).file}: tensor {name!r} has shape {qweight.shape}, "
                f"expected a second size that is a multiple of {NIBBLES}"
            )
        groups = count_groups(source, name, in_features, self.group_size)
        # Eight neighbours in K share a word, low nibble first: the transposed words are rows of packed nibbles.
        packed = bytes_from_words(qweight.T)
        qzeros = read_tensor(source, f"{module_name}.qzeros", INT32, (groups, out_features // NIBBLES))
        if not self.v2:
            qzeros = (qzeros.view(np.uint32) + _V1_OFFSET).view(np.int32)
        zero = unpack_words(qzeros)
        scale = read_tensor(source, f"{module_name}.scales", SCALE_DTYPES, (groups, out_features))
        perm = None
        if self.g_idx:
            name = f"{module_name}.g_idx"
            perm = perm_from_g_idx(read_tensor(source, name, INT32, (in_features,)), groups, name)
        return Int4Matrix(take_columns(packed, perm), zero, scale, perm)

    def write(self, matrix: Int4Matrix, module_name: str) -> list[tuple[str, np.ndarray]]:
        """See ``Int4Layout.write``."""
        check_writable(matrix, self.group_size, module_name)
        check_multiple(matrix.out_features, "outputs", module_name)
        if not self.g_idx:
            check_in_order(matrix, module_name, "GPTQ (without g_idx)")
        words = words_from_bytes(restore_columns(matrix.packed, matrix.perm))
        qzeros = pack_words(matrix.zero)
        if not self.v2:
            qzeros = (qzeros.view(np.uint32) - _V1_OFFSET).view(np.int32)
        tensors = [
            (f"{module_name}.qweight", np.ascontiguousarray(words.T)),
            (f"{module_name}.qzeros", qzeros),
            (f"{module_name}.scales", matrix.scale),
        ]
        if self.g_idx:
            g_idx = g_idx_from_perm(matrix.perm, matrix.in_features, matrix.scale.shape[0])
            tensors.append((f"{module_name}.g_idx", g_idx))
        return tensors
