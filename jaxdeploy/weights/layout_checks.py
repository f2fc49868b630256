"""Checks of the tensors that an int4 layout reads and of the matrices that it writes."""

import ml_dtypes
import numpy as np

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.tensor_source import TensorSource

INT32 = (np.dtype(np.int32),)
SCALE_DTYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))


def read_tensor(
    source: TensorSource, name: str, dtypes: tuple[np.dtype, ...], shape: tuple[int, ...] | None
) -> np.ndarray:
    """Read ``name`` and check it against the dtypes and (if not None) the shape that the layout calls for.

    Raises:
        CheckpointError: names file, tensor, expected and found dtype or shape.
    """
    info = source.info(name)
    if info.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise CheckpointError(f"{info.file}: tensor {name!r} has dtype {info.dtype}, expected {expected}")
    if shape is not None and info.shape != shape:
        raise CheckpointError(f"{info.file}: tensor {name!r} has shape {info.shape}, expected {shape}")
    return source.read(name)


def read_words(source: TensorSource, name: str) -> np.ndarray:
    """Read a matrix of int32 words whose shape is not known yet. Raises CheckpointError if it is none."""
    info = source.info(name)
    if len(info.shape) != 2 or 0 in info.shape:
        raise CheckpointError(f"{info.file}: tensor {name!r} has shape {info.shape}, expected two sizes above 0")
    return read_tensor(source, name, INT32, None)


def count_groups(source: TensorSource, name: str, in_features: int, group_size: int) -> int:
    """K/G of the matrix with K inputs whose packed tensor is ``name``; ``group_size`` -1 is one group per output.

    Raises:
        CheckpointError: the groups do not divide the inputs.
    """
    if group_size == -1:
        return 1
    if in_features % group_size:
        raise CheckpointError(
            f"{source.info(name).file}: tensor {name!r} has {in_features} inputs, expected a multiple of {group_size=}"
        )
    return in_features // group_size


def check_writable(matrix: Int4Matrix, group_size: int, module_name: str) -> None:
    """Raise CheckpointError unless ``matrix`` has groups of ``group_size`` and its inputs fill whole int32 words."""
    expected = matrix.in_features if group_size == -1 else group_size
    if matrix.group_size != expected:
        raise CheckpointError(f"{module_name}: groups of {matrix.group_size} inputs can't be written as {group_size=}")
    check_multiple(matrix.in_features, "inputs", module_name)


def check_multiple(size: int, what: str, module_name: str) -> None:
    """Raise CheckpointError unless ``size`` fills whole int32 words of eight int4 values."""
    if size % 8:
        raise CheckpointError(f"{module_name}: {size} {what} can't be packed, expected a multiple of 8")


def check_in_order(matrix: Int4Matrix, module_name: str, layout: str) -> None:
    """Raise CheckpointError if ``matrix`` is in act-order, which ``layout`` (a name for the message) can't store."""
    if matrix.perm is not None:
        raise CheckpointError(f"{module_name}: act-order columns (perm) can't be written in the {layout} layout")
