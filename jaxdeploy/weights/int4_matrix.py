"""An int4 matrix on the host: what every int4 checkpoint layout is read into and written from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.nibbles import unpack_nibbles


@dataclass(frozen=True, slots=True)
class Int4Matrix:
    """``w[n, k] = (q[n, k] - zero[k // G, n]) * scale[k // G, n]``: the arrays of QuantTensor, in numpy.

    Attributes:
        packed: ``[N, K/2]``, byte j of row n holds ``q[n, 2j]`` in its low and ``q[n, 2j + 1]`` in its high nibble.
        zero: ``[K/G, N]``, zero points 0..15.
        scale: ``[K/G, N]`` in the checkpoint's dtype.
        perm: ``[K]``, stored column k is input ``perm[k]`` (act-order); None if the columns are in order.
    """

    packed: UInt8[np.ndarray, "N half_K"]
    zero: UInt8[np.ndarray, "G N"]
    scale: Float[np.ndarray, "G N"]
    perm: Int32[np.ndarray, " K"] | None = None

    @property
    def in_features(self) -> int:
        """K, the number of inputs."""
        return 2 * self.packed.shape[1]

    @property
    def out_features(self) -> int:
        """N, the number of outputs."""
        return self.packed.shape[0]

    @property
    def group_size(self) -> int:
        """G, inputs that share a scale."""
        return self.in_features // self.scale.shape[0]

    @staticmethod
    def concat_outputs(matrices: Sequence["Int4Matrix"], module_names: Sequence[str]) -> "Int4Matrix":
        """One matrix with the outputs of ``matrices`` in order (q, k, v or gate, up), which all read the same inputs.

        Raises:
            CheckpointError: inputs, groups, scale dtype or column order differ; names both modules.
        """
        first = matrices[0]
        for other, name in zip(matrices[1:], module_names[1:], strict=True):
            for what, a, b in (
                ("in_features", first.in_features, other.in_features),
                ("group_size", first.group_size, other.group_size),
                ("scale dtype", first.scale.dtype, other.scale.dtype),
            ):
                if a != b:
                    raise CheckpointError(f"{module_names[0]} has {what} {a}, {name} has {b}; they can't be merged")
            if not _same_order(first.perm, other.perm):
                raise CheckpointError(
                    f"{module_names[0]} and {name} read the same inputs but store their columns in different act-order "
                    "(g_idx); quantize the model again with one order per input"
                )
        return Int4Matrix(
            packed=np.concatenate([matrix.packed for matrix in matrices], axis=0),
            zero=np.concatenate([matrix.zero for matrix in matrices], axis=1),
            scale=np.concatenate([matrix.scale for matrix in matrices], axis=1),
            perm=first.perm,
        )

    def split_outputs(self, sizes: Sequence[int]) -> list["Int4Matrix"]:
        """Undo ``concat_outputs``: matrices of ``sizes`` outputs each. ValueError unless the sizes add up to N."""
        if sum(sizes) != self.out_features:
            raise ValueError(f"{sizes=} add up to {sum(sizes)}, expected {self.out_features} outputs")
        borders = np.cumsum(sizes)[:-1]
        pieces = zip(
            np.split(self.packed, borders, axis=0),
            np.split(self.zero, borders, axis=1),
            np.split(self.scale, borders, axis=1),
            strict=True,
        )
        return [Int4Matrix(packed, zero, scale, self.perm) for packed, zero, scale in pieces]

    def take_outputs(self, index: Int[np.ndarray, " new_N"]) -> "Int4Matrix":
        """The matrix whose output n is this one's output ``index[n]`` (InternLM2 interleaves q, k, v in ``wqkv``)."""
        return replace(self, packed=self.packed[index], zero=self.zero[:, index], scale=self.scale[:, index])

    def dequantize(self) -> Float[np.ndarray, "N K"]:
        """The dense matrix in float32, columns in the order of the inputs. For tests and small tools."""
        group = self.group_size
        zero = np.repeat(self.zero.T.astype(np.float32), group, axis=1)
        scale = np.repeat(self.scale.T.astype(np.float32), group, axis=1)
        w = (unpack_nibbles(self.packed).astype(np.float32) - zero) * scale
        if self.perm is None:
            return w
        ordered = np.empty_like(w)
        ordered[:, self.perm] = w
        return ordered


def _same_order(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b)
