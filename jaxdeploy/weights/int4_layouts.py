"""The interface of the int4 checkpoint layouts, and which one a checkpoint has."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxdeploy.config.quantization import QuantizationConfig
from jaxdeploy.weights.awq_layout import AwqLayout
from jaxdeploy.weights.compressed_tensors_layout import CompressedTensorsLayout
from jaxdeploy.weights.gptq_layout import GptqLayout
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.tensor_source import TensorSource


class Int4Layout(Protocol):
    """How one kind of checkpoint stores an int4 linear module. Reading and writing back is exact to the bit."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names of the module's tensors after ``module_name + "."``, in the order in which they are written."""
        ...

    def read(self, source: TensorSource, module_name: str) -> Int4Matrix:
        """The module's matrix. Raises CheckpointError naming tensor, expected and found shape or dtype."""
        ...

    def write(self, matrix: Int4Matrix, module_name: str) -> list[tuple[str, np.ndarray]]:
        """Names and arrays of the module's tensors. Raises CheckpointError for what the layout can't express."""
        ...


def int4_layout(config: QuantizationConfig, tensor_names: Sequence[str]) -> Int4Layout:
    """The layout of a checkpoint.

    Args:
        config: its quantization settings.
        tensor_names: names of its tensors: they tell whether a GPTQ checkpoint without act-order has ``g_idx``.
    """
    if config.method == "awq":
        return AwqLayout(config.group_size)
    if config.method == "gptq":
        g_idx = config.desc_act or any(name.endswith(".g_idx") for name in tensor_names)
        return GptqLayout(config.group_size, v2=config.gptq_v2, g_idx=g_idx)
    return CompressedTensorsLayout(config.group_size, symmetric=not config.zero_point, g_idx=config.desc_act)
