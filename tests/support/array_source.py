"""A TensorSource over arrays in memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.tensor_source import TensorInfo


class ArraySource:
    def __init__(self, tensors: Iterable[tuple[str, np.ndarray]]):
        self.tensors = dict(tensors)

    def names(self) -> Sequence[str]:
        return tuple(self.tensors)

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"memory: tensor {name!r} is missing")
        array = self.tensors[name]
        return TensorInfo(array.dtype, array.shape, Path("memory"))

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def close(self) -> None:
        self.tensors.clear()
