"""One layer's weights: from the checkpoint to a flat dict, and back to the tensors of an int4 checkpoint."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import CheckpointError
from jaxdeploy.lite.block import LINEARS
from jaxdeploy.weights.family_names import CheckpointModule
from jaxdeploy.weights.int4_layouts import Int4Layout
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.leaf import LeafPlan, leaf_plans
from jaxdeploy.weights.nibbles import pack_nibbles
from jaxdeploy.weights.tensor_source import TensorSource

_PACKERS = 4  # threads; an 8B model's layer has seven modules, three of them large


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A rounded matrix on the host.

    Attributes:
        q: values 0..15 [N, K], uint8, columns in the order of ``perm``.
        scale: [N, K/G] float32, exact in the checkpoint's dtype.
        zero: [N, K/G] uint8.
        perm: stored column k is input ``perm[k]``; None if in order.
    """

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    perm: np.ndarray | None = None

    def matrix(self, scale_dtype: Any) -> Int4Matrix:
        """As the checkpoint's layouts take it."""
        scale = np.ascontiguousarray(self.scale.T.astype(scale_dtype))
        return Int4Matrix(pack_nibbles(self.q), np.ascontiguousarray(self.zero.T), scale, self.perm)


class LayerFiles:
    """Reads and writes layers of one checkpoint, in its family's own names and row orders.

    Args:
        config: of the dense model (``quantization`` None), or of an int4 one together with its layout.
    """

    def __init__(self, config: ModelConfig, layout: Int4Layout | None = None):
        self._layout = layout
        plans = [plan for plan in leaf_plans(config, config.dtype) if plan.source.stacked]
        self.plans = {".".join(plan.path[1:]): plan for plan in plans}
        """By name in the layer's dict; a linear module's weight is ``<linear>.weight``."""

    def read(self, source: TensorSource, layer: int) -> dict[str, np.ndarray]:
        """The layer's arrays as they are stored, int4 matrices de-quantized to float32.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or holds a NaN or an infinity; names it.
        """
        return {name: self._read(plan, source, layer) for name, plan in self.plans.items()}

    def tensors(
        self, weights: dict[str, np.ndarray], matrices: dict[str, Int4Matrix], layer: int, dtype: Any
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The layer as tensors of the checkpoint.

        Args:
            weights: arrays that stay float, cast to ``dtype`` (norms, biases).
            matrices: by linear module, written in the layout.
        """
        layout = self._layout
        assert layout is not None

        def write(module: CheckpointModule, piece: Int4Matrix) -> list[tuple[str, np.ndarray]]:
            return layout.write(piece if module.inverse is None else piece.take_outputs(module.inverse), module.name)

        with ThreadPoolExecutor(_PACKERS, "pack") as packers:
            packed = {}
            for linear, matrix in matrices.items():
                modules = self.plans[f"{linear}.weight"].modules(layer)
                pieces = matrix.split_outputs([module.outputs for module in modules])
                packed[f"{linear}.weight"] = packers.map(write, modules, pieces)
            for name, plan in self.plans.items():
                if plan.is_int4:
                    for tensors in packed[name]:
                        yield from tensors
                    continue
                modules = plan.modules(layer)
                pieces = np.split(weights[name], np.cumsum([module.outputs for module in modules])[:-1])
                for module, piece in zip(modules, pieces, strict=True):
                    ordered = piece if module.inverse is None else piece[module.inverse]
                    yield f"{module.name}.{plan.source.tensor}", np.ascontiguousarray(ordered.astype(dtype))

    def module_names(self, linear: str, layer: int) -> list[str]:
        """The checkpoint's modules that a linear module of the layer is made of."""
        return [module.name for module in self.plans[f"{linear}.weight"].modules(layer)]

    def in_features(self) -> dict[str, int]:
        """K of every linear module."""
        return {linear: self.plans[f"{linear}.weight"].layer_shape[1] for linear in LINEARS}

    def _read(self, plan: LeafPlan, source: TensorSource, layer: int) -> np.ndarray:
        modules = plan.modules(layer)
        if plan.is_int4:
            assert self._layout is not None
            pieces = [self._layout.read(source, module.name).dequantize() for module in modules]
        else:
            pieces = [read_finite(source, f"{module.name}.{plan.source.tensor}") for module in modules]
        for module, piece in zip(modules, pieces, strict=True):
            expected = (module.outputs, *plan.layer_shape[1:])
            if piece.shape != expected:
                raise CheckpointError(f"{module.name}: found shape {piece.shape}, expected {expected}")
        ordered = [piece if m.order is None else piece[m.order] for m, piece in zip(modules, pieces, strict=True)]
        return ordered[0] if len(ordered) == 1 else np.concatenate(ordered)


def read_finite(source: TensorSource, name: str) -> np.ndarray:
    """A float tensor as it is stored. Raises CheckpointError, naming it, if it holds a NaN or an infinity."""
    array = source.read(name)
    if not _all_finite(array):
        info, bad = source.info(name), int(np.sum(~np.isfinite(array.astype(np.float32))))
        raise CheckpointError(
            f"{info.file}: tensor {name!r} holds {bad} values that are not numbers (NaN or infinite) of {array.size}; "
            "the checkpoint is damaged, fetch it again"
        )
    return array


_CHECKED_AT_ONCE = 1 << 20  # values, so that what is computed of them stays in a core's cache


def _all_finite(array: np.ndarray) -> bool:
    """No NaN and no infinity, by the bits: numpy's own test of bfloat16 takes ten times as long as reading it."""
    flat = array.reshape(-1)
    if array.dtype.name not in _EXPONENTS:
        return bool(np.isfinite(flat).all())
    exponent = _EXPONENTS[array.dtype.name]
    bits = flat.view(exponent.dtype)
    return all(
        (bits[start : start + _CHECKED_AT_ONCE] & exponent).max() < exponent
        for start in range(0, bits.size, _CHECKED_AT_ONCE)
    )


_EXPONENTS = {"bfloat16": np.uint16(0x7F80), "float16": np.uint16(0x7C00), "float32": np.uint32(0x7F800000)}
"""Bits of the exponent; all of them are set in what is not a number, and in nothing else."""


def outer_names(config: ModelConfig) -> Sequence[tuple[str, LeafPlan]]:
    """Checkpoint names of the tensors outside of the layers: embedding, final norm, head."""
    return [
        (f"{plan.modules(0)[0].name}.{plan.source.tensor}", plan)
        for plan in leaf_plans(config, config.dtype)
        if not plan.source.stacked
    ]
