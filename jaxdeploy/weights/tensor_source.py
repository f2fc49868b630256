"""What the loader reads a checkpoint through: names, shapes, and one tensor at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    Attributes:
        dtype: dtype of the array that ``read`` returns (bfloat16 is ``ml_dtypes.bfloat16``).
        shape: shape of that array.
        file: the file that holds it, for error messages.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path

    @property
    def nbytes(self) -> int:
        """Bytes of the array that ``read`` returns."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


class TensorSource(Protocol):
    """A checkpoint on disk. The caller streams it tensor by tensor, so host memory stays close to the largest one."""

    def names(self) -> Sequence[str]:
        """Every tensor's name, in the order of the files."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and file. Raises CheckpointError if there is no such tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor: a read-only view of the mapped file where the format allows it, else a fresh array.

        Raises CheckpointError if there is no such tensor.
        """
        ...

    def close(self) -> None:
        """Let go of the files. Views that were handed out stay valid."""
        ...
