"""AutoAWQ's "gemm" layout."""

from dataclasses import dataclass

import numpy as np

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
    pack_nibbles,
    pack_words,
    unpack_nibbles,
    unpack_words,
)
from jaxdeploy.weights.tensor_source import TensorSource

NIBBLE_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # nibble i of a word holds output 8c + NIBBLE_ORDER[i]


@dataclass(frozen=True, slots=True)
class AwqLayout:
    """``qweight`` int32 ``[K, N/8]``, ``qzeros`` int32 ``[K/G, N/8]``, ``scales`` ``[K/G, N]``.

    Args:
        group_size: G; -1 for one group per output.
    """

    group_size: int

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names of a module's tensors."""
        return ("qweight", "qzeros", "scales")

    def read(self, source: TensorSource, module_name: str) -> Int4Matrix:
        """See ``Int4Layout.read``."""
        name = f"{module_name}.qweight"
        qweight = read_words(source, name)
        in_features, out_words = qweight.shape
        groups = count_groups(source, name, in_features, self.group_size)
        q = _unpack(qweight)  # [K, N]
        packed = pack_nibbles(np.ascontiguousarray(q.T))
        qzeros = read_tensor(source, f"{module_name}.qzeros", INT32, (groups, out_words))
        scale = read_tensor(source, f"{module_name}.scales", SCALE_DTYPES, (groups, NIBBLES * out_words))
        return Int4Matrix(packed, _unpack(qzeros), scale)

    def write(self, matrix: Int4Matrix, module_name: str) -> list[tuple[str, np.ndarray]]:
        """See ``Int4Layout.write``. Act-order can't be expressed."""
        check_writable(matrix, self.group_size, module_name)
        check_multiple(matrix.out_features, "outputs", module_name)
        check_in_order(matrix, module_name, "AWQ")
        q = np.ascontiguousarray(unpack_nibbles(matrix.packed).T)
        return [
            (f"{module_name}.qweight", _pack(q)),
            (f"{module_name}.qzeros", _pack(matrix.zero)),
            (f"{module_name}.scales", matrix.scale),
        ]


def _unpack(words: np.ndarray) -> np.ndarray:
    """int32 [rows, N/8] to uint8 [rows, N] in the order of the outputs."""
    nibbles = unpack_words(words)
    return nibbles.reshape(-1, NIBBLES)[:, np.argsort(NIBBLE_ORDER)].reshape(nibbles.shape)


def _pack(values: np.ndarray) -> np.ndarray:
    """Undo ``_unpack``."""
    return pack_words(values.reshape(-1, NIBBLES)[:, NIBBLE_ORDER].reshape(values.shape))
